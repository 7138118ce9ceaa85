"""zoo bench: how large, how soon and how fast a model is here."""

from typing import Annotated

import typer
from zoo_cli.output import human_size, next_command, print_json, print_table, say, write
from zoo_cli.state import make_zoo

from zoo import Benchmark, BenchOptions, Manifest, Verdict, to_plain

DEFAULT = BenchOptions()


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A registry name, or a bundle.")],
    against: Annotated[
        str | None, typer.Option(help="torch: the family's own module beside it, with the same weights.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each system; medians of them are printed.")] = (
        DEFAULT.rounds
    ),
    seconds: Annotated[float, typer.Option(help="Length of a turn, for each system and batch.")] = DEFAULT.seconds,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of each text: 32, or the model's limit where that is less.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute; one a core by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].", envvar="ZOO_DEVICE")] = DEFAULT.device,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Time a model at batch 1, 8 and 32, and its cold start, beside what the machine's matrix products reach.

    Every system is a process of its own and they take turns. Pictures are prepared before: the row `whole graph` has
    the preprocessing in it. Texts are tokens already. On a GPU copying there and back counts.
    """
    options = BenchOptions(
        against=against, rounds=rounds, seconds=seconds, length=length, threads=threads, device=device  # type: ignore[arg-type]
    )  # fmt: skip
    house = make_zoo(context)
    found = house.bench(model, options)
    if json:
        print_json("bench", to_plain(found))
    else:
        _print(found)
    if found.load > 0.5:
        say(f"warning: the machine was not idle (load {found.load:.1f}): every time may be too long")
    if not json:
        next_command("zoo", *_next(model, house.open(model).manifest, found.rival is not None))


def _next(model: str, manifest: Manifest, is_compared: bool) -> tuple[str, ...]:
    """What is worth trying now, of what this model can do."""
    is_table = manifest.lineage.entry.task == "word-vectors"
    if not is_compared and not is_table:
        return ("bench", model, "--against", "torch")
    is_bare = "pixels" in {spec.name for spec in manifest.inputs}
    if manifest.precision != "fp32" or manifest.fused or is_bare:
        # It is converted no further.
        return ("run", model, "INPUT")
    # Without a head a table of words is not judged, and takes no data.
    data = () if is_table and manifest.head is None else ("--calibrate", "DATA")
    return ("export", model, "-o", "DIR", "--precision", "int8", *data)


def _print(found: Benchmark) -> None:
    tokens = f", texts of {found.length} tokens" if found.length else ""
    write(
        f"{found.model}: {found.precision}, {human_size(found.size)}, on {found.device} with {found.threads} threads"
        + tokens
    )
    work = "not known" if found.macs is None else f"{found.macs / 1e6:,.4g} million an item"
    write(f"multiply-adds: {work}; peak: {found.peak:.0f} GFLOP/s, {found.peak_is}")
    write()
    print_table(
        ("SYSTEM", "BATCH", "MS A BATCH", "ROUNDS", "ITEMS/S", "OF PEAK"),
        [
            (
                each.system,
                f"{each.batch:>5}",
                f"{each.ms:>10.2f}",
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
        return f"no difference beyond the rounds' own at batch {verdict.batch}"
    return f"{verdict.winner} is {verdict.times:.2f} times faster than {verdict.loser} at batch {verdict.batch}"
