"""The report in a real browser: what the page shows is what the document says, at either width, without network."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest

from device_sim.results.files import write_all
from tests.support.documents import imagined

# Runs in the page before the browser is asked for its content: which drawings are shown, and how wide the page is.
PROBE = """<script>addEventListener("load", () => {
  const shown = [...document.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width > 0);
  const found = {
    shown: shown.length, all: document.querySelectorAll("svg").length,
    overflow: document.documentElement.scrollWidth - innerWidth,
    rows: [...document.querySelectorAll("tbody tr")].map(row => [...row.cells].map(cell => cell.innerText.trim())),
  };
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(found);
});</script>"""


@pytest.fixture
def chromium() -> str:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.fail("no Chromium is installed: make setup-tests")
    return program


@pytest.mark.timeout(90)
@pytest.mark.parametrize("width", [1000, 500])
async def test_the_figures_on_the_page_are_those_of_the_document(tmp_path: Path, chromium: str, width: int) -> None:
    document = imagined()
    write_all(document, tmp_path)
    page = tmp_path / "report.html"
    page.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    process = await asyncio.create_subprocess_exec(
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom", page.as_uri(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        content, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    match = re.search(r'<pre id="found">(.*?)</pre>', content.decode())
    assert match is not None
    found = json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))

    assert found["all"] == 2 * found["shown"] > 0
    assert found["overflow"] <= 0
    rows = {tuple(row) for row in found["rows"]}
    for duration in document["durations"].values():
        response = duration["response"]
        curve = dict(map(tuple, response["curve"]))
        percentiles = [f"{curve[percent]:.2f}" for percent in (50.0, 95.0, 99.0, 99.9)]
        assert (duration["description"], str(response["count"]), *percentiles, f"{response['max']:.2f}") in rows
    for name, value in document["counts"].items():
        assert (name.replace("_", " "), str(value)) in rows
    for item in document["thresholds"]:
        assert any(row[1:] == (item["condition"], f"{item['value']:g}") and item["metric"] in row[0] for row in rows)
