"""`zoo embed`: writes the features of any number of inputs to a file, with a fingerprint of the model's features."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from zoo.bundle import MODEL, Bundle
from zoo.outputs import vector_file
from zoo.outputs.resumable_file import OutputRecord
from zoo.outputs.write_rows import WriteJob, step_of, write_rows
from zoo.progress import SILENT, Progress
from zoo.results import Embedded
from zoo.runtime.session import Session
from zoo.store.store import graph_key
from zoo.system.files import sha256_json


def fingerprint(bundle: Bundle) -> str:
    """sha256 of everything that affects features by more than rounding: weights, preprocessing, precision, graph.

    A registry row, the bundle exported from it and a bundle with a head on the same features share one fingerprint.
    If the weights differ from those of the row (tuned stages, or int8), the fingerprint covers the model file too.
    """
    manifest = bundle.manifest
    parts: list[object] = [graph_key(manifest.lineage.entry), manifest.precision]
    if manifest.unfrozen or manifest.precision == "int8":
        parts.append(sorted((file.path, file.sha256) for file in manifest.files if file.path.startswith(MODEL)))
    return sha256_json(parts)


def embed(
    session: Session,
    inputs: Iterable[Any],
    out: Path,
    *,
    model: str,
    prompt: str | None = None,
    resume: bool = False,
    strict: bool = False,
    progress: Progress = SILENT,
) -> Embedded:
    """Write the features of `inputs` (items of a Session, or `Input`s with names) to the file of vectors `out`.

    `prompt` is the name of the model's prompt before each text. Raises UsageError for an unknown one, and the errors of
    `zoo.outputs.write_rows.write_rows`.
    """
    session, manifest = session.prompted(prompt), session.manifest
    fresh = OutputRecord(
        verb=vector_file.VERB, model=manifest.name, fingerprint=fingerprint(session.bundle),
        precision=manifest.precision, dim=manifest.dim, prompt=prompt,
    )  # fmt: skip
    job = WriteJob(
        result=partial(Embedded, dim=manifest.dim), rows=lambda items, skip: session.rows(items, "features", skip),
        step=step_of(manifest.preprocess), fresh=fresh, open=vector_file.open_writer,
        description=f"vectors by {manifest.name} on {session.device}", entry=manifest.lineage.entry.name,
        device=session.device, placement=session.placement,
    )  # fmt: skip
    return write_rows(job, inputs, out, model=model, resume=resume, strict=strict, progress=progress)
