"""zoo export: a checked ONNX bundle where you want it."""

from pathlib import Path
from typing import Annotated

import typer
from zoo_cli.output import human_size, next_command, print_json, reference, say, write
from zoo_cli.state import make_zoo

from zoo import Variant, to_plain


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A registry name, or a bundle.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 (for GPUs) or int8 (for CPUs); as it is where it is left out.")
    ] = None,
    fuse: Annotated[
        bool, typer.Option("--fuse", help="Fused attention for GPUs; only ONNX Runtime runs such a file.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="The bare backbone: prepared pixels (or token ids) in, features out.")
    ] = False,
    calibrate: Annotated[
        str | None, typer.Option(help="Data to calibrate int8 with, and to judge it by: what it was fine-tuned on.")
    ] = None,
    max_drop: Annotated[float, typer.Option(help="What int8 may lose of the accuracy; one item if that is more.")] = (
        Variant().max_drop
    ),
    text: Annotated[str | None, typer.Option(help="The column of texts.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of picture paths.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels.")] = None,
    max_bad: Annotated[float, typer.Option(help="Fraction of items that may be unreadable.")] = Variant().max_bad,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Export a model as one ONNX file that equals the original weights' own arithmetic, or write nothing.

    In half precision within wider bounds, in eight bits as long as its answers on held-out items stay as good.
    """
    variant = Variant(
        precision=precision, fuse=fuse, raw=raw, calibrate=calibrate,  # type: ignore[arg-type]
        max_drop=max_drop, text=text, image=image, label=label, max_bad=max_bad,
    )  # fmt: skip
    bundle = make_zoo(context).export(model, out, variant)
    manifest = bundle.manifest
    # A table of words lies beside the file.
    size = sum(file.size for file in manifest.files if file.path.endswith((".onnx", ".bin")))
    if json:
        facts = {
            "precision": manifest.precision,
            "fused": manifest.fused,
            "size": size,
            "parity": to_plain(manifest.parity),
            "guard": to_plain(manifest.guard),
        }
        print_json("export", {"path": str(bundle.model), **facts})
        return
    for check in manifest.parity.checks:
        say(f"  ✓ {check.name}, batch {check.batch}: {max(check.value, 0):.2g} (at most {check.bound:g})")
    if (guard := manifest.guard) is not None:
        interval = f" (95 %: {guard.interval[0]:.3f} to {guard.interval[1]:.3f})" if guard.interval else ""
        say(f"  ✓ {guard.before:.4f} before, {guard.after:.4f} after{interval}, n = {guard.n}: {guard.items}")
        if guard.refitted:
            say("    the head was fitted again to the features of this precision")
        if guard.excluded:
            say(f"    these layers stay in float: {', '.join(guard.excluded)}")
    form = f"{manifest.precision}, fused" if manifest.fused else manifest.precision
    say(f"{form}, {human_size(size)}, checked on {manifest.parity.samples}")
    next_command("zoo", "run", reference(out), "INPUT")
    write(str(bundle.model))
