"""The verbs on features themselves: `embed` writes those of many inputs, `similar` ranks by them. A part of `Zoo`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.answers import Embedded, Ranking
from zoo.environment import Environment

if TYPE_CHECKING:
    from zoo.inputs import Inputs
    from zoo.runtime import Session


class Vectors(Environment):
    """What `Zoo` adds to these: see there."""

    if TYPE_CHECKING:

        def session(self, model: str, device: str | None = None) -> Session:
            """As `Zoo.session`."""

        def each_input(
            self, model: str, arguments: Sequence[str], *, text: str | None = None, image: str | None = None
        ) -> Inputs:
            """As `Zoo.each_input`."""

    def embed(
        self, model: str, inputs: Iterable[Any], out: str | Path, *, device: str | None = None, resume: bool = False,
        strict: bool = False,
    ) -> Embedded:  # fmt: skip
        """Write the features of `inputs`, in their order, to a `.npy`, `.parquet` or `.jsonl` file: docs/embed.md.

        `inputs` are what `each_input` gives, or paths, PIL images or uint8 arrays for pictures, str for texts; they are
        taken one after another and not kept. One that cannot be read has its error in the output; with `strict` it is
        raised. With `resume` what a break left is continued. Raises DataError without inputs, UsageError for an output
        that is no file of vectors, unfinished, or made of other inputs or by another model, AccessError where it cannot
        be written.
        """
        from zoo.embed import embed
        from zoo.rowfile import check_name
        from zoo.vectorfile import SUFFIXES

        check_name(Path(out), SUFFIXES)
        return embed(
            self.session(model, device), inputs, Path(out), model=model, resume=resume, strict=strict,
            progress=self.progress,
        )  # fmt: skip

    def similar(
        self, model: str, query: Any, inputs: Iterable[Any], *, device: str | None = None, top: int = 5,
        text: str | None = None, image: str | None = None, index: bool = False,
    ) -> Ranking:  # fmt: skip
        """The `top` of `inputs` whose features are most like those of `query`, by their cosine.

        `inputs` are arguments as for `each_input`, of which any may be a file that `embed` wrote, or a `.npy`. All are
        compared; with `index` a file of more than a million vectors by an index beside it, which is made once. A file
        of another fingerprint than the model's is warned about. Raises DataError for a query that cannot be read, for
        nothing to compare, and for vectors of another length.
        """
        from zoo.similar import similar

        return similar(
            self.session(model, device), query, list(inputs), lambda each: self.each_input(
                model, [each], text=text, image=image
            ), model=model, top=top, index=index, progress=self.progress,
        )  # fmt: skip
