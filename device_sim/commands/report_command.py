"""`fleet-sim report`: a stored run again as a page, or two runs compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from device_sim.late_imports import late_imports


def report(
    run: Annotated[Path, typer.Argument(help="What `run --output` wrote: the directory, or its report.json.")],
    other: Annotated[
        Path | None, typer.Argument(help="The same of a later run, to compare.", show_default=False)
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as an HTML page here.", show_default=False)] = None,
) -> None:
    """Show a stored run, or compare two; for a running or interrupted one, what is known so far.

    \b
    Example:
      fleet-sim report monday tuesday --html change.html
    """
    with late_imports():
        from device_sim.destination import write
        from device_sim.explanation import explained
        from device_sim.results.comparison import comparison_of, comparison_page
        from device_sim.results.document import read
        from device_sim.results.page import page_of
        from device_sim.results.progress import document_so_far
        from device_sim.results.summary import summary_of
        from device_sim.view import View

    view = View()
    with explained(view):
        document = read(run, document_so_far)
        later = read(other, document_so_far) if other is not None else None
        if html is not None:
            write(html, page_of(document) if later is None else comparison_page(document, later))
            view.said(f"written: {html}")
        view.show(summary_of(document) if later is None else comparison_of(document, later))
