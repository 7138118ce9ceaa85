"""Features of any number of inputs into a file of vectors, and the fingerprint of what made them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zoo.bundle import MODEL, Bundle
from zoo.outputs import vector_file
from zoo.outputs.resumable_file import Record
from zoo.outputs.write_rows import Kind, into_file, step_of
from zoo.progress import SILENT, Progress
from zoo.results import Embedded
from zoo.runtime.session import Session
from zoo.store.store import graph_key
from zoo.system.files import sha256_json


def fingerprint(bundle: Bundle) -> str:
    """sha256 over all that decides a feature's numbers, but for rounding: weights, preprocessing, precision, graph.

    A row, the bundle exported from it and one with a head on the same features share theirs. The file itself counts
    where its weights are its own: after training deeper than the head, or calibrated to eight bits.
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
    resume: bool = False,
    strict: bool = False,
    progress: Progress = SILENT,
) -> Embedded:
    """Write the features of `inputs` (items of a Session, or `Input`s with names) to the file of vectors `out`.

    Raises as `zoo.outputs.write_rows.into_file`.
    """
    manifest = session.manifest
    fresh = Record(
        verb=vector_file.VERB, model=manifest.name, fingerprint=fingerprint(session.bundle),
        precision=manifest.precision, dim=manifest.dim,
    )  # fmt: skip
    kind = Kind(
        lambda items, skip: session.rows(items, "features", skip), step_of(manifest.preprocess), fresh,
        vector_file.open_writer, f"vectors by {manifest.name} on {session.device}",
    )  # fmt: skip
    done = into_file(kind, inputs, out, resume=resume, strict=strict, progress=progress)
    return Embedded(
        model=model, entry=manifest.lineage.entry.name, device=session.device, out=str(out),
        fingerprint=done.record.fingerprint, dim=done.record.dim, inputs=done.record.inputs, rows=done.record.rows,
        resumed=done.resumed, failures=done.failures, placement=session.placement,
    )  # fmt: skip
