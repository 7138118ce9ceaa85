"""The command line as a user meets it: its output on both streams, exit codes and one-line errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.kit.cli import fails, parsed, zoo
from tests.kit.items import write_images, write_texts
from zoo.evaluation.metrics import wilson


def test_list(shelf: Path) -> None:
    done = zoo("list")
    assert done.stdout.splitlines()[0].split() == ["NAME", "TASK", "DIM", "PARAMS", "SIZE", "LICENSE", "PULLED"]
    assert "next: zoo" in done.stderr
    models = {row["name"]: row for row in parsed(zoo("list", "--json"))["models"]}
    assert models["tiny-bert"]["pulled"] is True
    assert models["tiny-bert-cls"]["dim"] == 32
    assert zoo("list", "--family", "efficientnet", "-q").stdout == "tiny-lite\n"
    assert zoo("list", "nothing-like-it", "-q").stdout == ""


def test_the_registry_option_replaces_the_shipped_registry(shelf_file: Path) -> None:
    assert "tiny-lite" in zoo("--registry", shelf_file, "list", "-q").stdout
    assert "tiny-lite" not in zoo("list", "-q").stdout


def test_show(shelf: Path, tuned: Path) -> None:
    shown = zoo("show", "tiny-bert").stdout
    assert "sha256" in shown
    assert "head:        none: its weights have no classifier\n" in shown
    assert parsed(zoo("show", "tiny-lite", "--json"))["model"]["inputs"][0]["name"] == "pixels"
    card = zoo("show", tuned / "out").stdout
    assert "labels:      account, billing, delivery" in card
    assert "held out:    accuracy" in card
    assert parsed(zoo("show", tuned / "out", "--json"))["bundle"]["lineage"]["entry"]["name"] == "tiny-bert"


def test_pull(shelf: Path, zoo_home: Path) -> None:
    shutil.rmtree(zoo_home)
    plan = parsed(zoo("pull", "tiny-lite", "--dry-run", "--json"))["files"]
    assert [(row["file"]["path"], row["file"]["present"]) for row in plan] == [("lite0.pth", False)]
    assert not zoo_home.exists()
    done = zoo("pull", "tiny-lite", "tiny-bert")
    folder = Path(done.stdout.splitlines()[-1])
    assert (folder / "model.safetensors").is_file()
    assert done.stderr.splitlines()[-1] == "next: zoo finetune tiny-bert DATA -o DIR"
    assert zoo("show", "tiny-bert").stderr == "next: zoo finetune tiny-bert DATA -o DIR\n"
    assert parsed(zoo("pull", "tiny-lite", "--json"))["pulled"].keys() == {"tiny-lite"}
    assert "ok" in zoo("verify").stdout


def test_finetune_evaluate_export_run(shelf: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    done = zoo("finetune", "tiny-lite", data, "-o", tmp_path / "out", "--epochs", 30, "--head", "mlp:16")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out")
    assert "features by tiny-lite on cpu: 36 it" in done.stderr
    assert f"next: zoo evaluate {tmp_path / 'out'} {data} --held-out" in done.stderr
    evaluation = parsed(
        zoo("evaluate", tmp_path / "out", data, "--held-out", "--json", "--predictions", tmp_path / "p.csv")
    )
    metrics = evaluation["evaluation"]["metrics"]
    assert metrics["n"] == 6
    assert metrics["accuracy_interval"] == pytest.approx(wilson(round(metrics["accuracy"] * 6), 6))
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 7
    exported = zoo("export", tmp_path / "out", "-o", tmp_path / "exported")
    assert exported.stdout == f"{tmp_path / 'exported' / 'model.onnx'}\n"
    assert exported.stderr.count("✓") == 15
    run = parsed(zoo("run", tmp_path / "exported", data / "red", data / "blue" / "0*.png", "--json", "--top", 2))["run"]
    assert run["device"] == "cpu"
    assert len(run["results"]) == 22
    assert all(len(row["labels"]) == 2 for row in run["results"])
    again = zoo("finetune", "tiny-lite", data, "-o", tmp_path / "out", "--epochs", 2, "--lr", 0.01, "--json")
    assert parsed(again)["finetune"]["features_computed"] == 0


def test_run_reads_stdin_tables_and_text_files(shelf: Path, tuned: Path, tmp_path: Path) -> None:
    lines = zoo("run", tuned / "out", "-", "--top", 1, stdin="my card was charged\n\nlate parcel\n").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["my card was charged", "late parcel"]
    assert len(zoo("run", tuned / "out", tuned / "tickets.csv").stdout.splitlines()) == 120
    (tmp_path / "texts.txt").write_text("login code\nbill\n")
    rows = parsed(zoo("run", tuned / "out", tmp_path / "texts.txt", "--json"))["run"]["results"]
    assert [row["input"] for row in rows] == ["texts.txt:1", "texts.txt:2"]
    features = parsed(zoo("run", "tiny-bert", "card", "--json"))["run"]["results"][0]["features"]
    assert len(features) == 32


def test_evaluate_warns_about_items_it_was_trained_on(shelf: Path, tuned: Path) -> None:
    done = zoo("evaluate", tuned / "out", tuned / "tickets.csv")
    assert "trained on 96 of these 120 items" in done.stderr
    assert "TRUE \\ PREDICTED" in done.stdout


def test_a_floor_that_is_not_reached(shelf: Path, tuned: Path, tmp_path: Path) -> None:
    wrong = (
        (tuned / "tickets.csv")
        .read_text()
        .replace(",billing", ",x")
        .replace(",account", ",billing")
        .replace(",x", ",account")
    )
    (tmp_path / "wrong.csv").write_text(wrong)
    done = zoo("evaluate", tuned / "out", tmp_path / "wrong.csv", "--fail-under", 0.9)
    assert done.returncode == 6
    assert "is below --fail-under 0.9" in done.stderr
    asked = zoo("evaluate", tuned / "out", tmp_path / "wrong.csv", "--fail-under", 0.9, "--json")
    error = json.loads(asked.stdout)["error"]
    assert (error["code"], error["report"]["n"]) == ("gate", 120)
    assert zoo("evaluate", tuned / "out", tmp_path / "wrong.csv", "--fail-under", "nan").returncode == 2


def test_help_and_usage() -> None:
    assert "finetune" in zoo("--help").stdout
    assert zoo("--version").stdout.startswith("zoo 0.")
    for arguments in (("finetune", "x"), ("list", "--nonsense"), ("fly",)):
        done = zoo(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    for arguments, message, hint in (
        (("list", "--nonsense"), "No such option: --nonsense", "zoo list --help"),
        (("plugins", "check", "--limit", "0"), "Invalid value for '--limit'", "zoo plugins check --help"),
        (("finetune", "x"), "Missing argument 'data'", "zoo finetune --help"),
        (("fly",), "No such command 'fly'", "zoo --help"),
        (("evaluate", "m", "d", "--max-bad", "2"), "--max-bad must be in [0, 1], got 2.0", "--max-bad 0.01"),
        (("export", "m", "-o", "o", "--max-bad", "2"), "--max-bad must be in [0, 1], got 2.0", "--max-bad 0.01"),
        (("finetune", "m", "d", "-o", "o", "--max-bad", "2"), "--max-bad must be in [0, 1]", "--max-bad 0.01"),
    ):
        error = json.loads(zoo(*arguments, "--json").stdout)["error"]
        assert error["code"] == "usage"
        assert error["message"].startswith(message)
        assert error["hint"] == hint


def test_unknown_models(shelf: Path, tuned: Path, tmp_path: Path) -> None:
    assert "did you mean tiny-bert" in fails(3, "no model named 'tinny-bert'", "show", "tinny-bert")
    for verb in (("pull",), ("run", "x"), ("export", "-o", tmp_path / "o")):
        fails(3, "no model named", verb[0], "tiny-bart", *verb[1:])
    hint = fails(3, "is not a bundle", "run", tmp_path, "x")
    assert "zoo finetune" in hint
    fails(3, "nowhere: no such folder", "evaluate", "./nowhere", tuned / "tickets.csv")
    done = subprocess.run(
        [sys.executable, "-m", "zoo_cli", "run", "out", "x"], capture_output=True, text=True, cwd=tuned, check=False
    )
    assert done.returncode == 3
    assert "did you mean the bundle ./out?" in done.stderr


def test_errors_in_json(shelf: Path) -> None:
    done = zoo("show", "tiny-bart", "--json")
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "unknown-model"
    assert error["hint"].startswith("did you mean")


def test_a_wrong_digest(shelf: Path, tmp_path: Path, zoo_home: Path) -> None:
    shutil.rmtree(zoo_home)
    rows = json.loads(shelf.read_text())
    rows["models"]["tiny-lite"]["files"][0]["sha256"] = "0" * 64
    (tmp_path / "wrong.yaml").write_text(json.dumps(rows))
    fails(5, "lite0.pth", "pull", "tiny-lite", ZOO_REGISTRY=str(tmp_path / "wrong.yaml"))
    assert not list(zoo_home.rglob("*.pth"))
    assert zoo("list", "--pulled", "-q").stdout == ""


def test_an_unpinned_row(shelf: Path, tmp_path: Path, zoo_home: Path) -> None:
    shutil.rmtree(zoo_home)
    rows = json.loads(shelf.read_text())
    rows["models"]["tiny-lite"]["files"][0].update(sha256=None, size=None)
    open_shelf = str(tmp_path / "open.yaml")
    Path(open_shelf).write_text(json.dumps(rows))
    assert "unpinned" in zoo("list", ZOO_REGISTRY=open_shelf).stdout
    assert "--trust-first" in fails(5, "tiny-lite", "pull", "tiny-lite", ZOO_REGISTRY=open_shelf)
    assert zoo("pull", "tiny-lite", "--trust-first", ZOO_REGISTRY=open_shelf).returncode == 0
    assert json.loads((zoo_home / "zoo.lock").read_text())["entries"]["tiny-lite"]["lite0.pth"]["size"] > 0
    assert zoo("pull", "tiny-lite", ZOO_REGISTRY=open_shelf).returncode == 0


def test_bad_data(shelf: Path, tmp_path: Path, zoo_home: Path) -> None:
    table = write_texts(tmp_path / "t.csv", rows=4)
    images = write_images(tmp_path / "images", 3)
    before = sorted(str(path) for path in zoo_home.rglob("*"))
    out = tmp_path / "out"

    def finetune(model: str, data: Path, *more: object) -> tuple[object, ...]:
        return ("finetune", model, data, "-o", out, *more)

    hint = fails(2, "no column 'words'", *finetune("tiny-bert", table, "--text", "words"))
    assert "one of: text, label" in hint
    one_class = tmp_path / "one.csv"
    one_class.write_text("text,label\na,x\nb,x\n")
    fails(2, "only the class 'x'", *finetune("tiny-bert", one_class))
    (images / "void").mkdir()
    fails(2, "the class 'void' is empty", *finetune("tiny-lite", images))
    (images / "void").rmdir()
    fails(2, "not a table", *finetune("tiny-bert", images))
    fails(2, "reads images", *finetune("tiny-lite", table))
    fails(3, "no such file or folder", *finetune("tiny-lite", tmp_path / "nowhere"))
    fails(2, "unknown head 'huge'", *finetune("tiny-bert", table, "--head", "huge"))
    fails(2, "--val must be above 0 and below 1, got 1.5", *finetune("tiny-bert", table, "--val", "1.5"))
    assert sorted(str(path) for path in zoo_home.rglob("*")) == before
    (images / "red" / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    fails(2, "00.png", *finetune("tiny-lite", images))
    Image.new("RGB", (20, 20)).save(images / "red" / "00.png")
    (images / "red" / "01.png").write_bytes((images / "red" / "02.png").read_bytes()[:200])
    fails(2, "01.png", *finetune("tiny-lite", images))
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_data_is_judged_before_anything_is_pulled_or_built(
    shelf_file: Path, zoo_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_REGISTRY", str(shelf_file))
    images, table = write_images(tmp_path / "images", 3), write_texts(tmp_path / "t.csv")
    assert "this model reads images" in fails(3, "hello world: no such file", "run", "tiny-lite", "hello world")
    fails(2, "is an image; this model reads text", "run", "tiny-bert", images / "red/00.png")
    for empty in ("", " "):
        fails(2, "the text is empty", "run", "tiny-bert", empty)
    out = ("-o", tmp_path / "out")
    fails(2, "this model reads images", "finetune", "tiny-lite", table, *out)
    fails(2, "this model reads text", "finetune", "tiny-bert", images, *out)
    fails(2, "this model reads text", "finetune", "tiny-bert", table, "--val", images, *out)
    fails(2, "no column 'words'", "finetune", "tiny-bert", table, "--text", "words", *out)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/zoo.json").touch()
    monkeypatch.chdir(tmp_path)
    assert "./bundle" in fails(3, "no model named 'bundle'", "run", "bundle", "a text")
    assert not [path for path in zoo_home.rglob("*") if path.is_file()]


def test_offline(shelf: Path, zoo_home: Path) -> None:
    shutil.rmtree(zoo_home)
    assert zoo("list", ZOO_OFFLINE="1").returncode == 0
    hint = fails(4, "all-minilm-l6-v2", "pull", "all-minilm-l6-v2", ZOO_OFFLINE="1", ZOO_REGISTRY="")
    assert "hint" in hint
    # A local source stays usable.
    assert zoo("pull", "tiny-bert", "--offline").returncode == 0


def test_a_device_that_is_not_there(shelf: Path, tuned: Path) -> None:
    from zoo.runtime.device import cuda_problem

    if cuda_problem() is not None:
        fails(7, "cuda cannot be used", "run", tuned / "out", "x", "--device", "cuda")
    fails(2, "unknown device 'tpu'", "run", tuned / "out", "x", "--device", "tpu")


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("onnxruntime", "gpu", ("run", "{out}", "x")),
        ("tokenizers", "gpu", ("run", "{out}", "x")),
        ("numpy", "gpu", ("finetune", "tiny-bert", "{data}", "-o", "{new}")),
        ("torch", "train", ("finetune", "tiny-bert", "{data}", "-o", "{new}")),
        ("torch", "train", ("export", "{out}", "-o", "{new}")),
    ],
)
def test_a_missing_extra(
    shelf: Path, tuned: Path, tmp_path: Path, package: str, extra: str, arguments: tuple[str, ...]
) -> None:
    # The path finder does not find one package, as if it were not installed.
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        f"PathFinder.find_spec = lambda name, *rest: None if name.split('.')[0] == {package!r} else find(name, *rest)\n"
    )
    values = {"out": tuned / "out", "data": tuned / "tickets.csv", "new": tmp_path / "new"}
    command = [argument.format(**values) for argument in arguments]
    hint = fails(3, f"needs the package {package}", *command, PYTHONPATH=str(blocker))
    assert f"backbone-zoo[{extra}]" in hint
    assert not (tmp_path / "new").exists()


def test_interrupted_while_something_is_tidied_up() -> None:
    """Python drops exceptions that a destructor raises, also KeyboardInterrupt."""
    code = (
        "import signal, sys, time\nfrom zoo_cli import app, list as verb\n"
        # SIGINT is ignored if a shell runs the tests in the background.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Loud:\n    def __del__(self):\n        raise KeyboardInterrupt\n"
        "def command():\n    Loud()\n    for _ in range(300):\n        time.sleep(0.1)\n"
        "verb.command = command\nsys.argv[1:] = ['list']\napp.process()\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (child.returncode, child.stderr) == (130, "interrupted\n")


def test_interrupted_while_packages_load() -> None:
    """An interrupted import ends in an ImportError, as in ONNX Runtime's C code."""
    code = (
        "import sys\nfrom zoo_cli import app, list as verb\n"
        "def command():\n"
        "    try:\n        raise KeyboardInterrupt\n"
        "    except KeyboardInterrupt as error:\n        raise ImportError('import numpy failed') from error\n"
        "verb.command = command\nsys.argv[1:] = ['list']\napp.process()\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (child.returncode, child.stderr) == (130, "interrupted\n")


def test_interrupted_from_the_keyboard(shelf: Path, tmp_path: Path) -> None:
    import signal

    data = write_images(tmp_path / "images", 30)
    command = [
        sys.executable,
        "-m",
        "zoo_cli",
        "finetune",
        "tiny-lite",
        str(data),
        "-o",
        str(tmp_path / "out"),
        "--epochs",
        "100000",
    ]
    # Tests that a shell started in the background ignore SIGINT, and their children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("features by"):
                break
        child.send_signal(signal.SIGINT)
        _, rest = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, rest
    assert "Traceback" not in rest
    assert not (tmp_path / "out").exists()


def test_debug_shows_where(shelf: Path) -> None:
    assert "Traceback" in zoo("--debug", "show", "tiny-bart").stderr


def test_an_input_that_cannot_be_read_does_not_cost_the_others_their_answer(shelf: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", 2)
    (data / "red" / "01.png").write_bytes((data / "red" / "01.png").read_bytes()[:40])
    done = zoo("run", "tiny-lite", data / "red", data / "blue")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 3
    assert f"failed: {data / 'red' / '01.png'}: cannot be decoded" in done.stderr
    assert "error: no answer for 1 of 4 inputs" in done.stderr
    asked = zoo("run", "tiny-lite", data / "red", data / "blue", "--json")
    assert asked.returncode == 1
    results = json.loads(asked.stdout)["run"]["results"]
    assert ["error" in row for row in results] == [False, True, False, False]
    assert results[1]["error"]["code"] == "data"
