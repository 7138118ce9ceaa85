"""zoo export: write a checked ONNX bundle to a folder of your choice."""

from pathlib import Path
from typing import Annotated

import typer
from zoo_cli.output import human_size, next_command, print_check, print_json, reference, say, write
from zoo_cli.state import make_zoo

from zoo import Variant, to_plain


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A registry name, or a bundle.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 (for GPUs) or int8 (for CPUs). Default: unchanged.")
    ] = None,
    fuse: Annotated[
        bool, typer.Option("--fuse", help="Use fused attention, for GPUs. Only ONNX Runtime runs such a file.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Export only the backbone: prepared pixels (or token ids) in, features out.")
    ] = False,
    calibrate: Annotated[
        str | None, typer.Option(help="Data to calibrate and check int8 with; best the data of fine-tuning.")
    ] = None,
    max_drop: Annotated[float, typer.Option(help="Accuracy that int8 may lose. Losing one item is always allowed.")] = (
        Variant().max_drop
    ),
    text: Annotated[str | None, typer.Option(help="The column of texts.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of images.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="A CSV file of two columns: a label in the data, the model's label for it.")
    ] = None,
    max_bad: Annotated[
        float, typer.Option(help="Fraction of items that may be unreadable; they are left out.")
    ] = Variant().max_bad,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Export to ONNX; fails unless it matches the original model.

    fp16 and int8 have wider limits. With --calibrate, int8 must also stay as accurate on held-out items; a note says so
    if that cannot be measured, because the model lacks labels of the data. If a check fails, nothing is written.
    """
    variant = Variant(
        precision=precision, fuse=fuse, raw=raw, calibrate=calibrate,  # type: ignore[arg-type]
        max_drop=max_drop, text=text, image=image, label=label, labels=labels, max_bad=max_bad,
    )  # fmt: skip
    bundle = make_zoo(context).export(model, out, variant)
    manifest = bundle.manifest
    # A word table is a separate file beside the graph.
    size = sum(file.size for file in manifest.files if file.path.endswith((".onnx", ".bin")))
    if json:
        facts = {"path": str(bundle.model), "precision": manifest.precision, "fused": manifest.fused, "size": size}
        print_json("export", {**facts, "parity": to_plain(manifest.parity), "guard": to_plain(manifest.guard)})
        return
    for check in manifest.parity.checks:
        print_check(check)
    if (guard := manifest.guard) is not None:
        interval = f" (95 %: {guard.interval[0]:.3f} to {guard.interval[1]:.3f})" if guard.interval else ""
        say(f"  ✓ {guard.before:.4f} before, {guard.after:.4f} after{interval}, n = {guard.n}: {guard.items}")
        if guard.refitted:
            say("    the head was trained again on the features of this precision")
        if guard.excluded:
            say(f"    layers that stay in float: {', '.join(guard.excluded)}")
    form = f"{manifest.precision}, fused" if manifest.fused else manifest.precision
    say(f"{form}, {human_size(size)}, checked on {manifest.parity.samples}")
    next_command("zoo", "run", reference(out), "INPUT")
    write(str(bundle.model))
