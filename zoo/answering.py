"""The verb `run`, from inputs to answers: all at once, one after another, or into a file. A part of `Zoo`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from zoo.answers import Answer, Answered, Answers, RunResult
from zoo.bundle import Bundle
from zoo.environment import Environment
from zoo.errors import DeviceError, IntegrityError, NotFoundError, UsageError
from zoo.extras import require
from zoo.schema import WordsPreprocess

if TYPE_CHECKING:
    from zoo.inputs import Inputs
    from zoo.runtime import Session
    from zoo.words import WordTable


class Answering(Environment):
    """What `Zoo` adds to these: see there."""

    if TYPE_CHECKING:

        def session(self, model: str, device: str | None = None) -> Session:
            """As `Zoo.session`."""

        def pull(self, name: str) -> Path:
            """As `Zoo.pull`."""

    def inputs(
        self, model: str, arguments: Sequence[str], *, text: str | None = None
    ) -> tuple[Sequence[str], Sequence[str]]:
        """(items, names) of command-line arguments for a model: files, folders, globs, texts, `-` for stdin."""
        from zoo.inputs import expand

        if self.is_path(model):
            return expand(arguments, Bundle.open(Path(model)).manifest.preprocess, text=text)
        # The row knows it, too: what cannot be read is refused before anything is pulled or exported for it.
        return expand(arguments, self.entry(model).preprocess, text=text)

    def each_input(
        self, model: str, arguments: Sequence[str], *, text: str | None = None, image: str | None = None
    ) -> "Inputs":
        """Command-line arguments as inputs of a model, read as they are asked for: any number of them.

        Files, folders, globs, tables (`text` and `image` name their columns), texts, and `-` for stdin. An input that
        cannot be read is one with an error. Iterating raises DataError for an argument that gives nothing.
        """
        from zoo.inputs import Inputs

        # The row knows it, too: what cannot be read is refused before anything is pulled or exported for it.
        known = Bundle.open(Path(model)).manifest.preprocess if self.is_path(model) else self.entry(model).preprocess
        return Inputs(arguments, known, text=text, image=image)

    def run(
        self, model: str, inputs: Any, *, names: Sequence[str] | None = None, device: str | None = None, top: int = 5,
        keep_going: bool = False,
    ) -> RunResult:  # fmt: skip
        """Answers for raw inputs: paths, PIL images or uint8 arrays for pictures, str for texts; one, or any iterable.

        The model is loaded for this call alone: `session(model).run(inputs)` is for many.
        A registry row of word vectors answers with nearest words, searched on the CPU. An input that cannot be read
        is a DataError, a text without a known word a NotFoundError there; with `keep_going` its answer has that
        error, and the others theirs. All answers are held: see `answers`, and `run_to_file`.
        """
        if not self.has_words(model):
            session = self.session(model, device)
            found = session.run(inputs, names=names, top=top, keep_going=keep_going, progress=self.progress)
            return replace(found, model=model)
        from zoo.inputs import one_or_more, with_names

        items = one_or_more(inputs)
        each = items if names is None else with_names(list(items), names)
        stream = self.answers(model, each, device=device, top=top, keep_going=keep_going)
        return RunResult(model=model, entry=stream.entry, device=stream.device, answers=tuple(stream))

    def answers(
        self, model: str, inputs: Any, *, device: str | None = None, top: int = 5, keep_going: bool = False
    ) -> Answers:
        """As `run`, for any number of inputs, which may be those of `each_input`: answers come one after another.

        The model is loaded at once; inputs are read as answers are asked for, and neither is kept. Raises what `run`
        does, an input's error when it is come to.
        """
        from zoo.inputs import one_or_more
        from zoo.run import ByWords, answers

        if self.has_words(model):
            _check_search(device)
            source = ByWords(self.words(model), top)
            found = answers(source, one_or_more(inputs), keep_going=keep_going)
            return Answers(self.entry(model).name, "cpu", None, found)
        session = self.session(model, device)
        found = session.answers(inputs, top=top, keep_going=keep_going)
        return Answers(session.manifest.lineage.entry.name, session.device, session.placement, found)

    def run_to_file(
        self, model: str, inputs: Iterable[Any], out: str | Path, *, device: str | None = None, top: int | None = None,
        resume: bool = False, strict: bool = False,
    ) -> Answered:  # fmt: skip
        """Write the answers for `inputs`, in their order, to a `.csv`, `.jsonl` or `.parquet` file: docs/run.md.

        `inputs` are as for `answers`, and not kept. With labels every score is written; `top` (5 by default) is of
        nearest words. An input that cannot be answered has its error in the output; with `strict` it is raised. With
        `resume` what a break left is continued. Raises DataError without inputs, UsageError for a model without a head
        and for an output that is unfinished or made of other inputs or by another model, AccessError where it cannot be
        written.
        """
        from zoo import answerfile

        answerfile.check_name(Path(out))
        if self.has_words(model):
            _check_search(device)
            entry = self.lock.effective(self.entry(model))
            answering = answerfile.of_words(self.words(model), entry, 5 if top is None else top)
        else:
            if top is not None:
                raise UsageError("a file has the score of every label: there is no top", hint="leave it out")
            answering = answerfile.of_session(self.session(model, device))
        return answerfile.write_answers(
            answering, inputs, Path(out), model=model, resume=resume, strict=strict, progress=self.progress
        )

    def words(self, model: str) -> "WordTable":
        """The word table of a registry row of word vectors, pulled and prepared the first time it is needed.

        Raises UsageError for any other model.
        """
        from zoo.words import WordTable

        preprocess = None if self.is_path(model) else self.entry(model).preprocess
        if not isinstance(preprocess, WordsPreprocess):
            raise UsageError(f"{model} has no table of words", hint="zoo list --task word-vectors shows those that do")
        require("nearest words", "numpy")
        entry = self.entry(model)
        try:
            folder = self.store.find(entry, self.lock)
            if folder is not None:
                return WordTable.open(folder, lowercase=preprocess.lowercase)
        except (NotFoundError, IntegrityError):
            # Never prepared, or changed since: the pull says what, and makes it right.
            pass
        # The pull prepares; without the family there is nothing that could, and it says why.
        self.plugins.backbone(entry.family)
        return WordTable.open(self.pull(model), lowercase=preprocess.lowercase)

    def has_words(self, model: str) -> bool:
        """Whether `words` has a table for this model reference."""
        if self.is_path(model):
            return False
        entry = self.entry(model) if self.bridged.reference(model) else self.registry.get(model)
        return entry is not None and isinstance(entry.preprocess, WordsPreprocess)

    def analogy(self, model: str, a: str, b: str, c: str, *, device: str | None = None, top: int = 5) -> RunResult:
        """The `top` words nearest to a - b + c, these three left out: "king", "man", "woman" gives "queen".

        Raises UsageError for a model without a table of words, NotFoundError for a word that it does not have.
        """
        from zoo.run import check_top

        _check_search(device)
        check_top(top)
        answer = Answer(input=f"{a} - {b} + {c}", words=tuple(self.words(model).analogy(a, b, c, top)))
        return RunResult(model=model, entry=self.entry(model).name, device="cpu", answers=(answer,))


def _check_search(device: str | None) -> None:
    if device not in (None, "auto", "cpu"):
        raise DeviceError("nearest words are searched on the CPU", device=device, hint="--device cpu, or --device auto")
