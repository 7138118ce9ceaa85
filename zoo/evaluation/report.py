"""A report's plots drawn by a child process, on another core, beside what its parent does meanwhile.

Matplotlib takes about as long to import and to draw as a head takes to train.
"""

import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from zoo.errors import ZooError
from zoo.evaluation import report_page, report_plots
from zoo.evaluation.report_data import Facts, Report, gather
from zoo.extras import REPORT, require
from zoo.system.files import write_atomic
from zoo.system.process import Child, EndedError, Parent, python
from zoo.system.records import write_record

if TYPE_CHECKING:
    from typing import Self


HTML, JSON = "report.html", "report.json"
#: Seconds that a child may take, which needs about one.
LIMIT = 60.0


class Drawing:
    """A context manager: the child starts with it, and ends with it at the latest.

    A child that cannot start or that fails costs time alone: the plots are then drawn here.
    """

    def __init__(self) -> None:
        self._child: Child | None = None
        self._thread = ThreadPoolExecutor(1)
        self._result: Future[tuple[Facts, dict[str, bytes]]] | None = None
        self._is_over = False

    def __enter__(self) -> "Self":
        # The child's own messages are of no use to anyone: the plots are drawn in any case.
        with suppress(OSError):
            self._child = Child(python("-m", "zoo.evaluation.report"), stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._is_over = True
        if self._child:
            # The thread that waits for the child then ends, too.
            self._child.close()
        self._thread.shutdown(cancel_futures=True)

    def begin(self, report: Report) -> None:
        """Gather the numbers of a report and draw its plots, beside what the caller does until `result`."""
        self._result = self._thread.submit(self._draw, report)

    def result(self) -> tuple[Facts, dict[str, bytes]]:
        """(the numbers, PNG files by their name) of the report given to `begin`."""
        assert self._result is not None
        return self._result.result()

    def _draw(self, report: Report) -> tuple[Facts, dict[str, bytes]]:
        facts = gather(report)
        if self._child:
            try:
                names, images = self._child.ask(facts, seconds=LIMIT)
                return facts, dict(zip(names["images"], images, strict=True))
            except (EndedError, ZooError):
                self._child.close()
        if self._is_over:
            # An error ended the context: nobody will look at them.
            return facts, {}
        return facts, report_plots.draw(facts)


def main() -> None:
    """The child: takes the facts of a report, and answers with the images and their file names."""
    parent = Parent()
    report_plots.load()
    if (message := parent.receive()) is not None:
        images = report_plots.draw(msgspec.convert(message.data, Facts))
        parent.send({"images": list(images)}, list(images.values()))


if __name__ == "__main__":
    main()


def write_report(folder: Path, report: Report, drawn: "tuple[Facts, dict[str, bytes]] | None" = None) -> Facts:
    """Write `report.html`, `report.json` and `report-*.png` into `folder`; the same facts give the same bytes.

    `drawn` is what `zoo.evaluation.report` made of the report already. Returns what the JSON file holds. Raises
    MissingExtraError without matplotlib.
    """
    require("the report", *REPORT)
    if drawn is None:
        facts = gather(report)
        drawn = facts, report_plots.draw(facts)
    facts, images = drawn
    for name, data in images.items():
        write_atomic(folder / name, data)
    items = [report.examples[mistake.place].item for mistake in facts.mistakes]
    write_atomic(folder / HTML, report_page.render(facts, images, items).encode("utf-8", "replace"))
    write_record(folder / JSON, facts, indent=1)
    return facts
