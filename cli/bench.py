"""zoo bench: the size, start-up time and speed of a model on this machine."""

from typing import Annotated

import typer
from zoo_cli.output import counted, human_size, next_command, print_json, print_table, say, write
from zoo_cli.state import make_zoo

from zoo import Benchmark, BenchOptions, Manifest, Verdict, to_plain

DEFAULT = BenchOptions()


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A registry name, or a bundle.")],
    against: Annotated[
        str | None, typer.Option(help="torch: also time the family's own module with the same weights.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds for each system; the printed times are medians over rounds.")
    ] = (DEFAULT.rounds),
    seconds: Annotated[float, typer.Option(help="Seconds per round of one system and batch size.")] = DEFAULT.seconds,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens in each text. Default: 32, or the model's limit if that is less.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Compute threads. Default: one per core.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].", envvar="ZOO_DEVICE")] = DEFAULT.device,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Time a model at batch 1, 8 and 32, and its cold start, compared with this machine's peak matrix speed.

    Every system runs in its own process, in turns. Images are preprocessed before timing, except in the row `whole
    graph`; texts are tokenized before. On a GPU, copying to and from the device is included.
    """
    options = BenchOptions(
        against=against, rounds=rounds, seconds=seconds, length=length, threads=threads, device=device  # type: ignore[arg-type]
    )  # fmt: skip
    zoo = make_zoo(context)
    found = zoo.bench(model, options)
    if json:
        print_json("bench", to_plain(found))
    else:
        _print(found)
    if found.load > 0.5:
        say(f"warning: the machine was not idle (load {found.load:.1f}): the times may be too long")
    if not json:
        next_command("zoo", *_next(model, zoo.open(model).manifest, found.rival is not None))


def _next(model: str, manifest: Manifest, is_compared: bool) -> tuple[str, ...]:
    """The arguments of the next command to try with this model."""
    is_table = manifest.lineage.entry.task == "word-vectors"
    if not is_compared and not is_table:
        return ("bench", model, "--against", "torch")
    is_bare = "pixels" in {spec.name for spec in manifest.inputs}
    if manifest.precision != "fp32" or manifest.fused or is_bare:
        # A bare backbone cannot be converted further.
        return ("run", model, "INPUT")
    # The export of a word table without a head takes no data.
    data = () if is_table and manifest.head is None else ("--calibrate", "DATA")
    return ("export", model, "-o", "DIR", "--precision", "int8", *data)


def _print(found: Benchmark) -> None:
    tokens = f", texts of {found.length} tokens" if found.length else ""
    threads = counted(found.threads, "thread")
    write(f"{found.model}: {found.precision}, {human_size(found.size)}, on {found.device} with {threads}{tokens}")
    work = "unknown" if found.macs is None else f"{found.macs / 1e6:,.4g} million per item"
    write(f"multiply-adds: {work}; peak: {found.peak:.0f} GFLOP/s, {found.peak_is}")
    write()
    print_table(
        ("SYSTEM", "BATCH", "MS/BATCH", "ROUNDS", "ITEMS/S", "OF PEAK"),
        [
            (
                each.system,
                f"{each.batch:>5}",
                f"{each.ms:>8.2f}",
                f"{each.low:.2f} to {each.high:.2f}",
                f"{each.per_second:>7.1f}",
                "" if each.of_peak is None else f"{each.of_peak:>7.0%}",
            )
            for each in found.timings
        ],
    )
    write()
    for start in found.cold:
        write(f"cold start with {start.system}: {start.seconds:.2f} s ({start.low:.2f} to {start.high:.2f})")
    for verdict in found.verdicts:
        write(_words(verdict))


def _words(verdict: Verdict) -> str:
    if verdict.winner is None:
        return f"no clear difference at batch {verdict.batch}: the ranges of the rounds overlap"
    return f"{verdict.winner} is {verdict.times:.2f} times faster than {verdict.loser} at batch {verdict.batch}"
