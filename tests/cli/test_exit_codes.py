"""A mistake has the same exit code for every verb, on the command line and in Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zoo import DataError, FinetuneOptions, NotFoundError, Variant, Zoo, ZooError

Command = Callable[..., tuple[int, str, str]]
#: The verbs that read data or inputs; `similar` once with the mistake in its query.
VERBS = ("finetune", "finetune --val", "evaluate", "run", "run -o", "embed", "similar", "similar QUERY", "export")
#: A mistake -> (exit code, the kind of model, the data that is made).
MISTAKES = {
    "a folder that does not exist": (3, "pets", "gone"),
    "a table of images that does not exist": (3, "pets", "gone.csv"),
    "a table of texts that does not exist": (3, "tickets", "gone.csv"),
    "a table without the column": (2, "pets", "other.csv"),
    "a table of texts without the column": (2, "tickets", "other.csv"),
    "a table without rows": (2, "tickets", "rows.csv"),
    "an empty table": (2, "tickets", "empty.csv"),
    "an empty folder": (2, "pets", "empty"),
    "an image for a model of texts": (2, "tickets", "image.png"),
    "a model that does not exist": (3, "gone", "images"),
}


@pytest.fixture
def files(kept_shelf: Path, tuned_bundles: Path, tmp_path: Path) -> Path:
    """A folder with wrong data, and links to the bundles `pets` and `tickets` and to their data."""
    (tmp_path / "other.csv").write_text("a,b\nx,y\nz,w\n")
    (tmp_path / "rows.csv").write_text("text,label\n")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "empty").mkdir()
    for name in ("pets", "tickets", "images", "t.csv"):
        (tmp_path / name).symlink_to(tuned_bundles / name)
    (tmp_path / "image.png").symlink_to(tuned_bundles / "images/red/00.png")
    return tmp_path


def arguments(verb: str, files: Path, kind: str, data: Path) -> list[object]:
    """The arguments of a command in which only `data` is wrong."""
    bundle, out = files / kind, files / "out"
    right = files / ("t.csv" if kind == "tickets" else "images")
    base = bundle if kind == "gone" else {"pets": "tiny-lite", "tickets": "tiny-bert"}[kind]
    query = "my card" if kind == "tickets" else files / "image.png"
    return {
        "finetune": ["finetune", base, data, "-o", out],
        "finetune --val": ["finetune", base, right, "--val", data, "-o", out],
        "evaluate": ["evaluate", bundle, data],
        "run": ["run", bundle, data],
        "run -o": ["run", bundle, data, "-o", files / "out.jsonl"],
        "embed": ["embed", bundle, data, "-o", files / "out.npy"],
        "similar": ["similar", bundle, query, data],
        "similar QUERY": ["similar", bundle, data, right],
        "export": ["export", bundle, "-o", out, "--precision", "int8", "--calibrate", data],
    }[verb]  # type: ignore[return-value]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_on_the_command_line(files: Path, command: Command, mistake: str, verb: str) -> None:
    code, kind, name = MISTAKES[mistake]
    ended, printed, said = command(*arguments(verb, files, kind, files / name))
    assert ended == code, said
    assert said.count("error: ") == 1
    assert printed == ""
    assert not {"out", "out.jsonl", "out.npy"} & {path.name for path in files.iterdir()}


def in_python(files: Path, kind: str, data: Path) -> dict[str, Callable[[], Any]]:
    """A call for each verb in which only `data` is wrong."""
    house, bundle, options = Zoo(), str(files / kind), FinetuneOptions(val=str(data))
    base = {"pets": "tiny-lite", "tickets": "tiny-bert"}[kind]
    query = "my card" if kind == "tickets" else files / "image.png"
    return {
        "finetune": lambda: house.finetune(base, data, files / "out"),
        "finetune --val": lambda: house.finetune(base, files / "images", files / "out", options),
        "evaluate": lambda: house.evaluate(bundle, data),
        "run": lambda: house.run(bundle, [data]),
        "embed": lambda: house.embed(bundle, [data], files / "out.npy", strict=True),
        "similar": lambda: house.similar(bundle, query, [str(data)]),
        "similar QUERY": lambda: house.similar(bundle, data, [str(query)]),
        "features": lambda: house.session(bundle).features([data]),
        "export": lambda: house.export(bundle, files / "out", Variant(precision="int8", calibrate=str(data))),
    }


def test_a_missing_file_in_python(files: Path) -> None:
    """The error can be caught as DataError and as NotFoundError."""
    for verb, call in in_python(files, "pets", files / "gone.png").items():
        with pytest.raises(ZooError) as caught:
            call()
        assert isinstance(caught.value, DataError), verb
        assert isinstance(caught.value, NotFoundError), verb
        assert (caught.value.exit_code, caught.value.code) == (3, "not-found"), verb
        assert caught.value.hint


def test_a_missing_file_among_others(files: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other inputs are answered if they come one by one, and `--strict` ends with the exit code of the mistake."""
    from io import BytesIO, TextIOWrapper

    for more, code in (([], 1), (["--strict"], 3)):
        lines = TextIOWrapper(BytesIO(f"{files / 'image.png'}\n{files / 'gone.png'}\n".encode()))
        monkeypatch.setattr("sys.stdin", lines)
        assert command("run", files / "pets", "-", *more)[0] == code
