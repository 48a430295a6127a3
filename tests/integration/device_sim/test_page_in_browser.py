"""The report in a real browser: what the page shows is what the document says, at either width, without network."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from device_sim.results.files import write_all
from tests.support.documents import imagined

# Runs in the page and tells the page around it: which drawings are shown, how wide it is, and how well it can be read.
# The page is in a frame because a window of Chromium's is never narrower than 500 pixels, and a phone is.
PROBE = """<script>addEventListener("load", () => {
  const shown = [...document.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width > 0);
  const light = colour => {
    const parts = colour.match(/[0-9.]+/g).slice(0, 3).map(part => part / 255);
    const [r, g, b] = parts.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const contrasts = [...document.querySelectorAll("h1, td, p, figcaption span")].map(element => {
    const text = light(getComputedStyle(element).color);
    return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
  });
  parent.postMessage(JSON.stringify({
    shown: shown.length, all: document.querySelectorAll("svg").length, width: innerWidth,
    overflow: document.documentElement.scrollWidth - innerWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches, ground: ground, contrast: Math.min(...contrasts),
    headings: [...document.querySelectorAll("h2")].map(heading => heading.innerText),
    rows: [...document.querySelectorAll("tbody tr")].map(row => [...row.cells].map(cell => cell.innerText.trim())),
  }), "*");
});</script>"""
AROUND = """<!doctype html><body><pre id=found>[]</pre><script>const found = []; addEventListener("message", event => {
  found.push(event.data);
  document.getElementById("found").textContent = "[" + found.join(",") + "]";
});</script>FRAMES</body>"""
FRAME = '<iframe src="report.html" width="{}" height="900" style="border: 0"></iframe>'
WIDTHS = (1280, 390)
NO_SCRIPTS = "default-src 'none'"
CONTENTS = [
    "Thresholds", "Connected devices", "Device to backend", "Revocation: how soon closed, how soon refused",
    "Refusals by reason", "The generator itself", "Latency by percentile", "All durations", "All counts", "Environment",
]  # fmt: skip
"""In this order; there may be others between them."""


@pytest.fixture
def chromium() -> str:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.fail("no Chromium is installed: make setup-tests")
    return program


async def told(chromium: str, page: str, folder: Path, scheme: str = "light") -> Any:
    """Return what the probe in *page* tells at each width at which it runs."""
    (folder / "report.html").write_text(page.replace("</body>", PROBE + "</body>"))
    around = folder / "frame.html"
    around.write_text(AROUND.replace("FRAMES", "".join(map(FRAME.format, WIDTHS))))
    dark = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0") if scheme == "dark" else ()
    process = await asyncio.create_subprocess_exec(
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", *dark,
        "--virtual-time-budget=5000", "--dump-dom", around.as_uri(),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        content, _ = await asyncio.wait_for(process.communicate(), 240)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert content.count(b"<iframe") == len(WIDTHS)
    match = re.search(r'<pre id="found">(.*?)</pre>', content.decode())
    assert match is not None
    return json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


async def test_no_script_in_the_page_runs(tmp_path: Path, chromium: str) -> None:
    write_all(imagined(), tmp_path)
    assert await told(chromium, (tmp_path / "report.html").read_text(), tmp_path) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_figures_on_the_page_are_those_of_the_document(tmp_path: Path, chromium: str, scheme: str) -> None:
    document = imagined()
    write_all(document, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert NO_SCRIPTS in page
    probed = page.replace(NO_SCRIPTS, f"{NO_SCRIPTS}; script-src 'unsafe-inline'")
    at_each_width = await told(chromium, probed, tmp_path, scheme)
    assert sorted(found["width"] for found in at_each_width) == sorted(WIDTHS)
    for found in at_each_width:
        assert found["dark"] is (scheme == "dark") is (found["ground"] < 0.5)
        shows(found, document)


def shows(found: dict[str, Any], document: dict[str, Any]) -> None:
    assert found["all"] == 2 * found["shown"] > 0
    assert found["overflow"] <= 0
    assert found["contrast"] >= 4.5  # WCAG 2.2 §1.4.3, level AA.
    assert [heading for heading in found["headings"] if heading in CONTENTS] == CONTENTS
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
