"""The training report: its numbers, page and plots.

A child process draws the plots while the parent goes on, because importing matplotlib and drawing take about as long as
training a head.
"""

import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from zoo.errors import ZooError
from zoo.evaluation import report_page, report_plots
from zoo.evaluation.report_data import Facts, ReportInputs, gather
from zoo.extras import REPORT, require
from zoo.system.files import write_atomic
from zoo.system.process import Child, EndedError, Parent, python
from zoo.system.records import write_record

if TYPE_CHECKING:
    from typing import Self

#: The numbers of a report, and its plots: PNG files by name.
Drawn: TypeAlias = tuple[Facts, dict[str, bytes]]


class Drawing:
    """A context manager that draws a report's plots in a child process, which ends with the context.

    If the child cannot start or fails, the plots are drawn in this process.
    """

    def __init__(self) -> None:
        self._child: Child | None = None
        self._thread = ThreadPoolExecutor(1)
        self._result: Future[Drawn] | None = None
        self._is_over = False

    def __enter__(self) -> "Self":
        # Drop error messages of the child: if it fails, the plots are drawn in this process.
        with suppress(OSError):
            self._child = Child(python("-m", "zoo.evaluation.report"), stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        if self._child:
            # This also ends the thread that waits for the child.
            self._child.close()
        self._thread.shutdown(cancel_futures=True)

    def begin(self, report: ReportInputs) -> None:
        """Start a thread that gathers the numbers of a report and waits for its plots; `result` returns both."""
        self._result = self._thread.submit(self._draw, report)

    def result(self) -> Drawn:
        """The numbers and plots of the report that was given to `begin`; waits until they are ready."""
        assert self._result is not None
        return self._result.result()

    def _draw(self, report: ReportInputs) -> Drawn:
        facts = gather(report)
        if self._child:
            try:
                # Drawing takes about one second.
                names, images = self._child.ask(facts, seconds=60.0)
                return facts, dict(zip(names["images"], images, strict=True))
            except (EndedError, ZooError):
                self._child.close()
        # If an error has ended the context, the plots are not needed.
        return facts, {} if self._is_over else report_plots.draw(facts)


def write_report(folder: Path, report: ReportInputs, drawn: Drawn | None = None) -> Facts:
    """Write `report.html`, `report.json` and `report-*.png` into `folder`; equal inputs give equal bytes.

    `drawn` is the result of a `Drawing`, if there is one. Returns the content of the JSON file. Raises
    MissingExtraError without matplotlib.
    """
    require("the report", *REPORT)
    facts = drawn[0] if drawn else gather(report)
    images = drawn[1] if drawn else report_plots.draw(facts)
    for name, data in images.items():
        write_atomic(folder / name, data)
    items = [report.examples[mistake.place].item for mistake in facts.mistakes]
    doubtful = [report.trained[suspect.place].item for suspect in facts.suspects]
    page = report_page.render(facts, images, items, doubtful)
    write_atomic(folder / "report.html", page.encode("utf-8", "replace"))
    write_record(folder / "report.json", facts, indent=1)
    return facts


def main() -> None:
    """Run the child: receive the facts of a report, send the plots and their file names."""
    parent = Parent()
    report_plots.load()
    if (message := parent.receive()) is not None:
        images = report_plots.draw(msgspec.convert(message.data, Facts))
        parent.send({"images": list(images)}, list(images.values()))


if __name__ == "__main__":
    main()
