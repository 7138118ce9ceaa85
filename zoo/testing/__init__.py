"""The conformance check of families: `check_backbone` in a test, `zoo plugins check` on the command line.

Start with `conformance.py`, which has one function for each requirement. `families.py` chooses registry rows, and
`child.py` checks one row in a child process. Only the names in `__all__` are public.
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

__all__ = ["Check", "Report", "check_backbone"]

CheckState: TypeAlias = Literal["passed", "failed", "skipped"]


class Check(Struct, frozen=True, kw_only=True):
    """The result of one requirement: `skipped` if a requirement that it needs failed, or if it cannot be checked."""

    name: str
    state: CheckState
    detail: str
    seconds: float = 0.0


class Report(Struct, frozen=True, kw_only=True):
    """The results for one family with the weights of one row; `size` is the size of the graph and its files in bytes.

    `state` is `broken` if the plugin cannot be loaded and `left out` if no row was available; `note` has the reason.
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
        """Whether no requirement failed."""
        return self.state == "passed"

    @property
    def failures(self) -> list[str]:
        """A line for each failed requirement; empty if the family conforms."""
        return [f"{check.name}: {check.detail}" for check in self.checks if check.state == "failed"]


def check_backbone(cls: type[Backbone], entry: Entry, weights: Path, *, module: str | None = None) -> Report:
    """The report on the family `cls`, checked with the files of the row `entry` in the folder `weights`.

    `module` is the module of the family's entry point; by default that of `cls`. The report lists the family's faults.
    Raises MissingExtraError if a package that the check needs is missing.
    """
    return summary(entry, [each for each in examine(cls, entry, weights, module) if not isinstance(each, str)])


def summary(entry: Entry, found: Sequence[Check | int]) -> Report:
    """The report made from the values that `examine` yielded."""
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
    """The checks of all remaining requirements, marked as skipped because `culprit` ended the process."""
    seen = {each.name for each in found if isinstance(each, Check)}
    return [
        Check(name=step.name, state="skipped", detail=f"not checked: {culprit} did not pass")
        for step in STEPS
        if step.name not in seen and step.only is None
    ]


def examine(cls: type[Backbone], entry: Entry, weights: Path, module: str | None = None) -> Iterator[str | Check | int]:
    """Yields each requirement's name when its check begins, then the result; last the size of the graph in bytes."""
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
                check = Check(name=step.name, state="skipped", detail=f"not checked: {broken[0]} did not pass")
            else:
                yield step.name
                check = _checked(step, subject)
            done[step.name] = check.state
            yield check
        if subject.size is not None:
            yield subject.size


def _checked(step: Step, subject: Subject) -> Check:
    start = time.perf_counter()
    state: CheckState = "failed"
    try:
        detail = step.look(subject)
        state = "passed"
    except KeyboardInterrupt:
        raise
    except UnseenError as error:
        state, detail = "skipped", f"could not check: {error}"
    except (BrokenError, ZooError) as error:
        detail = str(error)
    except BaseException as error:
        # A plugin may raise any exception, even SystemExit, which then is the result.
        detail = f"{type(error).__name__}: {brief(str(error))}"
    return Check(name=step.name, state=state, detail=detail, seconds=time.perf_counter() - start)
