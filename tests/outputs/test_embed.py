"""zoo embed: order, named failures, byte-exact resuming, fingerprints, and bounded memory."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.cli import fails, parsed, zoo
from tests.kit.items import write_texts
from tests.kit.outputs import FORMATS, WORDS, breaking, files, some_texts, write_lines, write_photos
from zoo import DataError, FinetuneOptions, UsageError, Variant, Zoo
from zoo.outputs.embed import fingerprint
from zoo.outputs.vector_reader import Stored
from zoo.runtime.pipeline import WINDOW

ROOT = Path(__file__).resolve().parents[2]


def stored(out: Path) -> tuple[np.ndarray, list[str]]:
    """Returns the vectors and the names of an output."""
    found = Stored(out)
    vectors = np.concatenate(list(found.blocks()))
    names = found.names(range(len(vectors)))
    return vectors, [names[row] for row in range(len(vectors))]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_the_features_in_order(kept_shelf: Path, tmp_path: Path, name: str) -> None:
    texts, out = some_texts(WINDOW + 50), tmp_path / name
    done = Zoo().embed("tiny-bert", iter(texts), out, device="cpu")
    assert (done.inputs, done.rows, done.failed, done.dim) == (len(texts), len(texts), 0, 32)
    vectors, names = stored(out)
    assert names == texts
    session = Zoo().session("tiny-bert", "cpu")
    np.testing.assert_allclose(vectors, session.features(texts), atol=1e-6)
    assert vectors.dtype == np.float32


def test_what_other_programs_read(kept_shelf: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    inputs = ["my card", " ", "a late parcel"]
    for name in FORMATS:
        assert Zoo().embed("tiny-bert", inputs, tmp_path / name, device="cpu").failed == 1
    matrix = np.load(tmp_path / "v.npy")
    assert matrix.shape == (2, 32)
    side = [json.loads(line) for line in (tmp_path / "v.npy.jsonl").read_text().splitlines()]
    assert [line.get("row") for line in side] == [0, None, 1]
    assert side[1]["error"]["code"] == "data"
    table = parquet.read_table(tmp_path / "v.parquet")
    assert table["input"].to_pylist() == inputs
    assert table["features"].null_count == 1
    assert table["error"].to_pylist()[1]["message"] == "the text is empty"
    np.testing.assert_array_equal(np.array(table["features"].to_pylist()[2], np.float32), matrix[1])
    lines = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [line["input"] for line in lines] == inputs
    np.testing.assert_array_equal(np.array(lines[0]["features"], np.float32), matrix[0])
    assert json.loads((table.schema.metadata or {})[b"zoo.embeddings"])["rows"] == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", FORMATS)
def test_ctrl_c_leaves_what_resume_makes_whole(kept_shelf: Path, tmp_path: Path, name: str) -> None:
    texts = some_texts(3 * WINDOW + 100)
    texts[5] = texts[WINDOW + 9] = " "
    whole, out = tmp_path / "whole" / name, tmp_path / "broken" / name
    Zoo().embed("tiny-bert", texts, whole, device="cpu")
    # All texts that the iterator yielded before Ctrl-C are written.
    came = 2 * WINDOW + 7
    with pytest.raises(KeyboardInterrupt):
        Zoo().embed("tiny-bert", breaking(texts, came), out, device="cpu")
    vectors, names = stored(out)
    assert names == [text for text in texts[:came] if text.strip()]
    np.testing.assert_allclose(vectors, stored(whole)[0][: came - 2], atol=1e-6)
    done = Zoo().embed("tiny-bert", texts, out, device="cpu", resume=True)
    # The last window is computed again, because its texts are now in other batches.
    assert (done.resumed, done.inputs, done.failed) == (2 * WINDOW, len(texts), 2)
    assert files(out) == files(whole)
    again = Zoo().embed("tiny-bert", texts, out, device="cpu", resume=True)
    assert (again.resumed, again.rows) == (len(texts), len(texts) - 2)
    assert files(out) == files(whole)


@pytest.mark.parametrize("name", ["v.npy", "v.jsonl"])
def test_texts_that_are_added_make_the_file_that_all_would_have_made(
    kept_shelf: Path, tmp_path: Path, name: str
) -> None:
    texts, house = some_texts(WINDOW + 300), Zoo()
    whole, out = tmp_path / "whole" / name, tmp_path / "grown" / name
    house.embed("tiny-bert", texts, whole, device="cpu")
    for count in (150, WINDOW - 1, WINDOW + 9, len(texts)):
        assert house.embed("tiny-bert", texts[:count], out, device="cpu", resume=True).rows == count
    assert files(out) == files(whole)
    with pytest.raises(UsageError, match="the inputs are not those"):
        house.embed("tiny-bert", [*texts[:-1], "another", "more"], out, device="cpu", resume=True)
    assert files(out) == files(whole)


def test_ctrl_c_while_nothing_comes_writes_what_has_come(kept_shelf: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    command = [sys.executable, "-m", "zoo_cli", "embed", "tiny-bert", "-", "-o", str(out), "--device", "cpu"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as child:  # type: ignore[call-overload]
        child.stdin.write("one\ntwo\n\nthree\n")
        child.stdin.flush()
        # After the first line the command holds its output's lock; the pipe stays open and silent.
        deadline = time.monotonic() + 120
        while not out.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        said = child.stderr.read()
    assert child.returncode == 130, said
    assert "stopping after the inputs that have arrived" in said
    assert f"{out} holds 3 inputs: --resume continues" in said
    assert stored(out)[1] == ["one", "two", "three"]
    done = zoo("embed", "tiny-bert", "-", "-o", out, "--resume", "--json", stdin="one\ntwo\nthree\nfour\n")
    assert parsed(done)["embed"]["rows"] == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_broken_off_is_resumed(kept_shelf: Path, tmp_path: Path, number: signal.Signals) -> None:
    lines = write_lines(tmp_path / "t.txt", 4 * WINDOW)
    command = [sys.executable, "-m", "zoo_cli", "embed", "tiny-bert", str(lines), "--device", "cpu", "-o"]
    assert subprocess.run([*command, str(tmp_path / "whole.npy")], capture_output=True, check=False).returncode == 0
    out, record = tmp_path / "broken.npy", tmp_path / "broken.npy.zoo.json"
    child = subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not record.is_file() or json.loads(record.read_text())["inputs"] == 0:
        assert time.monotonic() < deadline
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)
    child.send_signal(number)
    said = child.communicate()[1]
    assert child.returncode == (130 if number is signal.SIGINT else -signal.SIGKILL), said
    counted = json.loads(record.read_text())
    assert 0 < counted["inputs"] < 4 * WINDOW
    assert len(np.load(out)) >= counted["rows"]
    if number is signal.SIGINT:
        assert f"{out} holds {counted['inputs']:,} inputs: --resume continues" in said
    assert "--resume continues it" in fails(2, "is unfinished", *command[3:], out)
    done = zoo(*command[3:], out, "--resume", "--json")
    assert parsed(done)["embed"]["resumed"] == counted["inputs"]
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert (tmp_path / "broken.npy.jsonl").read_bytes() == (tmp_path / "whole.npy.jsonl").read_bytes()


def test_images_that_cannot_be_read_are_named_and_counted(kept_shelf: Path, tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 12), tmp_path / "v.npy"
    (photos / "03.png").write_bytes((photos / "03.png").read_bytes()[:60])
    (photos / "notes.md").write_text("x")
    done = zoo("embed", "tiny-lite", photos, "-o", out)
    assert done.returncode == 1
    assert done.stdout == f"{out}\n"
    assert "error: no vector for 2 of 13 inputs" in done.stderr
    reported = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert [name in line for name, line in zip(("03.png", "notes.md"), reported, strict=True)] == [True, True]
    vectors, names = stored(out)
    assert names == [str(photos / f"{n:02}.png") for n in range(12) if n != 3]
    session = Zoo().session("tiny-lite", "cpu")
    np.testing.assert_allclose(vectors, session.features(names), atol=1e-5)
    answer = json.loads(zoo("embed", "tiny-lite", photos, "-o", out, "--json").stdout)["embed"]
    assert (answer["inputs"], answer["rows"], answer["failed"]) == (13, 11, 2)
    assert [failure["code"] for failure in answer["failures"]] == ["data", "data"]


def test_images_are_resumed_in_the_middle_of_batches(kept_shelf: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 40)
    for bad in (2, 17, 18, 19):
        (photos / f"{bad:02}.png").write_bytes(b"no image")
    paths = [str(path) for path in sorted(photos.iterdir())]
    whole, out = tmp_path / "whole" / "v.npy", tmp_path / "broken" / "v.npy"
    Zoo().embed("tiny-lite", paths, whole, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        Zoo().embed("tiny-lite", breaking(paths, 22), out, device="cpu")
    assert 0 < len(np.load(out)) < 30
    Zoo().embed("tiny-lite", paths, out, device="cpu", resume=True)
    assert files(out) == files(whole)


def test_strict_stops_at_the_first(kept_shelf: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "t.csv", tmp_path / "v.jsonl"
    table.write_text("text,n\nmy card,1\n,2\nlate parcel,3\n,4\n")
    fails(2, "t.csv:3 has an empty 'text'", "embed", "tiny-bert", table, "-o", out, "--strict")
    # No row was written, so there is no file.
    assert not out.exists()
    table.write_text("text,n\nmy card,1\nbill,2\nlate parcel,3\n")
    assert zoo("embed", "tiny-bert", table, "-o", out, "--resume").returncode == 0
    assert [json.loads(line)["input"] for line in out.read_text().splitlines()] == ["t.csv:2", "t.csv:3", "t.csv:4"]


def test_tables_and_stdin(kept_shelf: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = tmp_path / "t.jsonl"
    rows.write_text('{"words": "my card"}\nnot json\n{"other": 1}\n{"words": "bill"}\n')
    done = zoo("embed", "tiny-bert", rows, "--text", "words", "-o", tmp_path / "a.npy")
    assert done.returncode == 1
    assert "t.jsonl:2 is not JSON" in done.stderr
    assert "t.jsonl:3 has no column 'words'" in done.stderr
    assert stored(tmp_path / "a.npy")[1] == ["t.jsonl:1", "t.jsonl:4"]
    fails(2, "no column 'text'", "embed", "tiny-bert", rows, "-o", tmp_path / "b.npy")
    assert zoo("embed", "tiny-bert", "-", "-o", tmp_path / "c.npy", stdin="one\n\ntwo\n").returncode == 0
    assert stored(tmp_path / "c.npy")[1] == ["one", "two"]
    assert "there is no input" in zoo("embed", "tiny-bert", "-", "-o", tmp_path / "d.npy").stderr
    photos = write_photos(tmp_path / "photos", 2)
    cells = [(photos / "00.png").read_bytes(), None, (photos / "01.png").read_bytes()]
    parquet.write_table(pyarrow.table({"photo": cells}), tmp_path / "p.parquet")
    done = zoo("embed", "tiny-lite", tmp_path / "p.parquet", "--image", "photo", "-o", tmp_path / "e.npy")
    assert "error: no vector for 1 of 3 inputs" in done.stderr
    (tmp_path / "p.csv").write_text("image\nphotos/00.png\n../out.png\nphotos/01.png\n")
    assert zoo("embed", "tiny-lite", tmp_path / "p.csv", "-o", tmp_path / "f.npy").returncode == 1
    np.testing.assert_array_equal(stored(tmp_path / "e.npy")[0], stored(tmp_path / "f.npy")[0])
    assert not (tmp_path / "d.npy").exists()


def test_outputs_that_are_not_to_be_written(kept_shelf: Path, tmp_path: Path) -> None:
    house, out = Zoo(), tmp_path / "v.npy"

    def refused(words: str, model: str = "tiny-bert", inputs: tuple[str, ...] = ("a", "b"), **more: Any) -> None:
        before = files(out)
        with pytest.raises(UsageError, match=words) as caught:
            house.embed(model, inputs, **{"out": out, "device": "cpu", **more})
        assert caught.value.hint
        assert files(out) == before

    refused(r"v\.csv is not a \.npy", out=tmp_path / "v.csv")
    (tmp_path / "folder.npy").mkdir()
    refused("is a folder", out=tmp_path / "folder.npy")
    out.write_bytes(b"somebody's")
    refused("is not an output of zoo embed")
    out.unlink()
    with pytest.raises(DataError, match="there is no input"):
        house.embed("tiny-bert", [], out)
    house.embed("tiny-bert", ["a", "b"], out, device="cpu")
    refused("not those", inputs=("a", "c"), resume=True)
    refused("not those", inputs=("a",), resume=True)
    refused("made by another model", model="tiny-bert-cls", resume=True)
    more = house.embed("tiny-bert", ["a", "b", "c"], out, device="cpu", resume=True)
    assert (more.rows, len(np.load(out))) == (3, 3)
    out.write_bytes(out.read_bytes()[:100])
    with pytest.raises(Exception, match="shorter than its record"):
        house.embed("tiny-bert", ["a", "b", "c", "d"], out, device="cpu", resume=True)


def test_a_folder_that_is_none(kept_shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fails(8, "cannot be written", "embed", "tiny-bert", "a", "-o", tmp_path / "file/v.npy")
    assert zoo("embed", "tiny-bert", "a", "-o", tmp_path / "new/folder/v.npy").returncode == 0


FULL = """
import resource, signal, sys
from zoo import Zoo, ZooError

# As a disk that is full after so many bytes of a file.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
house = Zoo()
try:
    house.embed("tiny-bert", house.each_input("tiny-bert", [sys.argv[1]]), sys.argv[2], device="cpu")
except ZooError as error:
    print(error.code, error.message)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of a file")
@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_costs_nothing_that_was_written(kept_shelf: Path, tmp_path: Path, name: str) -> None:
    lines, out = write_lines(tmp_path / "t.txt", 2 * WINDOW), tmp_path / name
    child = subprocess.run(
        [sys.executable, "-c", FULL, str(lines), str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("access ")
    assert "cannot be written: File too large" in child.stdout
    house = Zoo()
    done = house.embed("tiny-bert", house.each_input("tiny-bert", [str(lines)]), out, device="cpu", resume=True)
    assert done.rows == 2 * WINDOW
    house.embed("tiny-bert", house.each_input("tiny-bert", [str(lines)]), tmp_path / "whole" / name, device="cpu")
    assert files(out) == files(tmp_path / "whole" / name)


def test_a_fingerprint_is_of_the_features(deep_shelf: Path, tmp_path: Path) -> None:
    house = Zoo()
    row = fingerprint(house.open("tiny-bert"))
    table = write_texts(tmp_path / "t.csv")
    house.finetune("tiny-bert", table, tmp_path / "head", FinetuneOptions(epochs=2))
    house.finetune("tiny-bert", table, tmp_path / "deep", FinetuneOptions(epochs=1, unfreeze=1))
    house.export("tiny-bert", tmp_path / "half", Variant(precision="fp16"))
    found = {name: fingerprint(house.open(str(tmp_path / name))) for name in ("head", "deep", "half")}
    assert found["head"] == row
    assert len({row, found["deep"], found["half"], fingerprint(house.open("tiny-bert-cls"))}) == 4
    done = house.embed(str(tmp_path / "head"), ["my card"], tmp_path / "v.npy", device="cpu")
    assert done.fingerprint == row
    assert json.loads((tmp_path / "v.npy.zoo.json").read_text())["fingerprint"] == row
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), house.session("tiny-bert").features(["my card"]), atol=1e-6)


GROWTH = """
import sys
from pathlib import Path
from zoo import Zoo

def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) * 1024

house, folder = Zoo(), Path(sys.argv[1])
house.embed("tiny-bert", house.each_input("tiny-bert", [str(folder / "few.txt")]), folder / ("few" + sys.argv[2]))
before = peak()
done = house.embed(
    "tiny-bert", house.each_input("tiny-bert", [str(folder / "many.txt")]), folder / ("many" + sys.argv[2])
)
assert done.rows == 100_000
print(before, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_hundred_thousand_texts_take_no_more_memory(kept_shelf: Path, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "few.txt").write_text("my card\n")
    with (tmp_path / "many.txt").open("w") as file:
        file.writelines(f"{WORDS[n % 6]} {n}\n" for n in range(100_000))
    command = [sys.executable, "-c", GROWTH, str(tmp_path), suffix]
    child = subprocess.run(
        command, cwd=ROOT, capture_output=True, check=False, text=True, env={**os.environ, "ZOO_DEVICE": "cpu"}
    )
    assert child.returncode == 0, child.stderr
    before, after = map(int, child.stdout.split())
    # `before` includes the model and one text; the goal is 300 MB above the model.
    assert after - before < 150e6, (before, after)
