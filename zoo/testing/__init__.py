"""The conformance check of families: `check_backbone` in a test, `zoo plugins check` on the command line.

`conformance.py` has the checks, one function for each promise; `families.py` chooses rows, `child.py` runs the check of
one row in a child process. Only the names in this file are public.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct

from zoo.backbone import Backbone
from zoo.errors import ZooError, brief
from zoo.extras import RUNTIME, TRAINING, require
from zoo.schema import Entry, WordsPreprocess
from zoo.testing.conformance import STEPS, BrokenError, Step, Subject, UnseenError
from zoo.torchkit import TorchBackbone

CheckState: TypeAlias = Literal["passed", "failed", "skipped"]


class Check(Struct, frozen=True, kw_only=True):
    """One promise: kept, broken, or not looked at, as another one was broken or it cannot be; `detail` says more."""

    name: str
    state: CheckState
    detail: str
    seconds: float = 0.0


class Report(Struct, frozen=True, kw_only=True):
    """What was found about one family with the weights of one row; `size` in bytes, with files beside the graph.

    `state` is `broken` where the plugin cannot be loaded and `left out` where no row was at hand: `note` says why.
    """

    family: str
    state: Literal["passed", "failed", "broken", "left out"]
    entry: str | None = None
    checks: tuple[Check, ...] = ()
    size: int | None = None
    seconds: float = 0.0
    note: str | None = None

    @property
    def passed(self) -> bool:
        """Whether no promise was broken."""
        return self.state == "passed"

    @property
    def failures(self) -> list[str]:
        """Each broken promise in words; empty when the family conforms."""
        return [f"{check.name}: {check.detail}" for check in self.checks if check.state == "failed"]


def check_backbone(cls: type[Backbone], entry: Entry, weights: Path, *, module: str | None = None) -> Report:
    """Examine a family with the files of `entry` in `weights`; `module` is its entry point's, that of `cls` if None.

    What the family does wrong is in the report. Raises MissingExtraError where a package that this needs is missing.
    """
    return summary(entry, [each for each in examine(cls, entry, weights, module) if not isinstance(each, str)])


def summary(entry: Entry, found: Sequence[Check | int]) -> Report:
    """The report on what `examine` yielded."""
    checks = tuple(each for each in found if isinstance(each, Check))
    sizes = [each for each in found if isinstance(each, int)]
    return Report(
        family=entry.family,
        state="failed" if any(check.state == "failed" for check in checks) else "passed",
        entry=entry.name,
        checks=checks,
        size=sizes[0] if sizes else None,
        seconds=sum(check.seconds for check in checks),
    )


def skipped(found: Sequence[Check | int], culprit: str) -> list[Check]:
    """The checks that were not reached because `culprit` ended the process, but for those of some families alone."""
    seen = {each.name for each in found if isinstance(each, Check)}
    return [
        Check(name=step.name, state="skipped", detail=f"not looked at: {culprit}")
        for step in STEPS
        if step.name not in seen and step.only is None
    ]


def examine(cls: type[Backbone], entry: Entry, weights: Path, module: str | None = None) -> Iterator[str | Check | int]:
    """Check by check: its name when it begins, then what was found; at last the size of the graph in bytes."""
    require("the conformance check", *RUNTIME, *TRAINING)
    done: dict[str, CheckState] = {}
    with tempfile.TemporaryDirectory(prefix="zoo-check-") as folder:
        subject = Subject(cls, entry, weights, module or cls.__module__, Path(folder))
        kinds = {"torch": issubclass(cls, TorchBackbone), "words": isinstance(entry.preprocess, WordsPreprocess)}
        for step in STEPS:
            if step.only is not None and not kinds[step.only]:
                continue
            broken = [name for name in step.needs if done.get(name, "passed") != "passed"]
            if broken:
                check = Check(name=step.name, state="skipped", detail=f"not looked at: {broken[0]}")
            else:
                yield step.name
                check = _judged(step, subject)
            done[step.name] = check.state
            yield check
        if subject.size is not None:
            yield subject.size


def _judged(step: Step, subject: Subject) -> Check:
    start = time.perf_counter()
    state: CheckState = "failed"
    try:
        detail = step.look(subject)
        state = "passed"
    except KeyboardInterrupt:
        raise
    except UnseenError as error:
        state, detail = "skipped", f"could not look: {error}"
    except BrokenError as error:
        detail = str(error)
    except ZooError as error:
        detail = error.message
    except BaseException as error:
        # Anybody's code: whatever it raises, an exit among it, is what was found.
        detail = f"{type(error).__name__}: {brief(str(error))}"
    return Check(name=step.name, state=state, detail=detail, seconds=time.perf_counter() - start)
