"""Unreadable images, incomplete folders and meaningless labels, by the real command."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from tests.kit import forks
from tests.kit.cli import fails, parsed, zoo
from tests.kit.items import TOPICS, bomb, encoded, write_images, write_texts

GOOD = ("animated.webp", "cmyk.jpg", "sixteen.png", "turned.jpg")
BAD = (
    "bomb.png", "cut.png", "eps.jpg", "fits.jpg", "flipped.png", "none.jpg", "svg.jpg", "text.jpg", "animated.gif",
    "dangling.png", "notes.txt", "outside.png", "pipe.png",
)  # fmt: skip


def spoil(folder: Path) -> Path:
    """Add unusual images, and files that are no images, to the class `red`."""
    red, random = folder / "red", np.random.default_rng(5)
    noise = [Image.fromarray(random.integers(0, 255, (60, 90, 3), dtype=np.uint8)) for _ in range(4)]
    noise[0].convert("CMYK").save(red / "cmyk.jpg")
    Image.fromarray(random.integers(0, 2**16, (50, 50), dtype=np.uint16)).save(red / "sixteen.png")
    noise[1].save(red / "animated.webp", save_all=True, append_images=noise[2:])
    exif = Image.Exif()
    exif[0x0112] = 6
    noise[2].save(red / "turned.jpg", exif=exif)
    noise[3].save(red / "animated.gif", save_all=True, append_images=noise[:2])
    png = encoded(noise[1], "PNG")
    damaged = bytearray(encoded(noise[2], "PNG"))
    damaged[len(damaged) // 2] ^= 0xFF
    contents = {
        "cut.png": png[: len(png) // 2],
        "flipped.png": bytes(damaged),
        "none.jpg": b"",
        "text.jpg": b"this was a .txt\n" * 20,
        "notes.txt": b"taken on a Monday\n",
        "fits.jpg": b"SIMPLE  =                    T".ljust(2880),
        "svg.jpg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "bomb.png": bomb(),
    }
    for name, data in contents.items():
        (red / name).write_bytes(data)
    noise[0].save(folder.parent / "secret.png")
    (red / "outside.png").symlink_to(folder.parent / "secret.png")
    (red / "dangling.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(red / "pipe.png")
    return folder


def peak(command: list[object]) -> tuple[str, str, int]:
    """Returns stdout, stderr and the peak memory in bytes of the command in its own process, which must succeed."""
    words = [sys.executable, "-m", "zoo_cli", *map(str, command)]
    # Not forked: a forked child would count the server's memory.
    environment = {**os.environ, forks.ADDRESS: ""}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        stderr, stdout = child.stderr.read(), child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, stderr
    return stdout, stderr, usage.ru_maxrss * 1024


def caches(home: Path) -> list[Path]:
    return sorted((home / "features").glob("*"))


def test_what_is_no_image_is_left_out_and_listed(shelf: Path, zoo_home: Path, tmp_path: Path) -> None:
    clean, out = write_images(tmp_path / "clean", 12), tmp_path / "out"
    _, _, usual = peak(["finetune", "tiny-lite", clean, "-o", tmp_path / "usual", "--epochs", 2])
    spoilt = spoil(shutil.copytree(clean, tmp_path / "spoilt"))
    stdout, _, most = peak(["finetune", "tiny-lite", spoilt, "-o", out, "--epochs", 2, "--max-bad", 0.3, "--json"])
    said = json.loads(stdout)["finetune"]
    assert said["items"] == 36 + len(GOOD)
    assert most - usual < 100e6
    names = {line.split(" (")[0].removeprefix("red/") for line in said["skipped"]}
    assert names == set(BAD)
    listed = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {row["name"].removeprefix("red/") for row in listed} == set(BAD)
    reasons = {row["name"].removeprefix("red/"): row["reason"] for row in listed}
    assert reasons["outside.png"] == "a link out of the folder"
    assert reasons["dangling.png"] == "a link to nothing"
    assert "4294836225 pixels" in reasons["bomb.png"]
    assert reasons["eps.jpg"] == "cannot be decoded: not an image of an accepted format"
    assert str(tmp_path) not in (out / "skipped.jsonl").read_text()
    assert "skipped.jsonl" in {file["path"] for file in json.loads((out / "zoo.json").read_text())["files"]}
    notes = " ".join(json.loads((out / "report.json").read_text())["notes"])
    assert "left out, see skipped.jsonl: " in notes
    assert f"({len(BAD)} in all)" in notes
    # The cache has four new items, the unusual images, and no digest of an unreadable file.
    assert said["features_computed"] == len(GOOD)
    # The command that finetune suggests next works on these data.
    done = zoo("finetune", "tiny-lite", spoilt, "-o", out, "--epochs", 2, "--max-bad", 0.3)
    assert f"{len(BAD)} left out of " in done.stderr
    [following] = [line for line in done.stderr.splitlines() if line.startswith("next: zoo ")]
    judged = zoo(*shlex.split(following.removeprefix("next: zoo ")), "--json")
    assert parsed(judged)["evaluation"]["metrics"]["n"] == said["metrics"]["n"]


def test_more_bad_items_than_allowed(shelf: Path, zoo_home: Path, tmp_path: Path) -> None:
    data, out = write_images(tmp_path / "data", 8), tmp_path / "out"
    for number in range(3):
        (data / "green" / f"broken{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    hint = fails(2, "1 of 27 items cannot be used", "finetune", "tiny-lite", data, "-o", out)
    assert "--max-bad" in hint
    error = zoo("finetune", "tiny-lite", data, "-o", out, "--max-bad", 0.1, "--json")
    assert error.returncode == 2
    message = json.loads(error.stdout)["error"]["message"]
    assert message.startswith("3 of 27 items cannot be used, more than --max-bad 0.1 allows (2): green/broken")
    assert all(f"broken{number}.png" in message for number in range(3))
    assert not out.exists()
    done = zoo("finetune", "tiny-lite", data, "-o", out, "--max-bad", 0.12, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    # Files with the wrong suffix are counted before anything is computed.
    for number in range(2):
        (data / "blue" / f"{number}.txt").write_text("x")
    before = caches(zoo_home)
    fails(2, "2 of 29 items cannot be used", "finetune", "tiny-lite", data, "-o", tmp_path / "two")
    assert caches(zoo_home) == before


def test_a_class_of_nothing_but_bad_images(shelf: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", 4)
    for path in (data / "green").iterdir():
        path.write_bytes(b"not an image" + path.name.encode())
    fails(2, "class 'green'", "finetune", "tiny-lite", data, "-o", tmp_path / "out", "--max-bad", 0.9)
    assert not (tmp_path / "out").exists()


def test_folders_that_lack_something(shelf: Path, zoo_home: Path, tmp_path: Path) -> None:
    """The error names the problem in one line, before anything is computed."""
    base, number = write_images(tmp_path / "base", 3), 0

    def refused(words: str, change: str, *more: object) -> None:
        nonlocal number
        number += 1
        data = shutil.copytree(base, tmp_path / f"data{number}")
        subprocess.run(["sh", "-ec", change], cwd=data, check=True)
        more = tuple(data / word if isinstance(word, Path) else word for word in more)
        fails(2, words, "finetune", "tiny-lite", data, "-o", tmp_path / "out", *more)

    refused("the class 'void' is empty", "mkdir void")
    refused("the class 'red' has 1 item of its own", "rm red/01.png red/02.png")
    refused("only the class 'red'", "rm -r green blue")
    refused("has no class folders", "rm -r red green blue")
    refused("the class 'red' is empty", "rm red/*")
    twice = "mkdir train val; mv red green blue train; mkdir -p val/red; cp train/red/00.png val/red/other.png"
    refused("so the score would be too good", twice)
    refused("so the score would be too good", "cp -r . ../val-of-its-own", "--val", tmp_path / "val-of-its-own")
    assert caches(zoo_home) == []
    assert not (tmp_path / "out").exists()


def test_labels_that_differ_in_case_are_noted(shelf: Path, tmp_path: Path) -> None:
    table = write_texts(tmp_path / "t.csv", 10)
    rows = table.read_text().splitlines()
    table.write_text(
        "\n".join([row.replace("billing", "Billing") if index % 2 else row for index, row in enumerate(rows)]) + "\n"
    )
    done = zoo("finetune", "tiny-bert", table, "-o", tmp_path / "out", "--epochs", 1)
    assert done.returncode == 0, done.stderr
    assert (
        "labels that differ only in case, spaces, hyphens or underscores: 'Billing' (5), 'billing' (5)" in done.stderr
    )


def test_random_labels_train_to_chance(shelf: Path, tmp_path: Path) -> None:
    """Held-out items do not leak into the training."""
    random, words = np.random.default_rng(2), " ".join(TOPICS.values()).split()
    rows = [
        f"my {' '.join(random.choice(words, 4))} is {number},{random.choice(list(TOPICS))}" for number in range(300)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    for head in ("linear", "mlp:64"):
        said = parsed(
            zoo(
                "finetune",
                "tiny-bert",
                tmp_path / "t.csv",
                "-o",
                tmp_path / "out",
                "--val",
                0.4,
                "--head",
                head,
                "--json",
            )
        )["finetune"]
        low, high = said["metrics"]["accuracy_interval"]
        assert said["metrics"]["n"] >= 110
        assert low < 1 / 3 < high


def head_and_split(out: Path) -> tuple[bytes, bytes]:
    return (out / "head.safetensors").read_bytes(), (out / "split.jsonl").read_bytes()


def test_the_order_of_files_and_rows_changes_nothing(shelf: Path, built_home: Path, tmp_path: Path) -> None:
    """Two processes with their own ZOO_HOME, so that both compute features."""
    images, table = write_images(tmp_path / "images", 6), write_texts(tmp_path / "one.csv", 20)
    renamed = tmp_path / "renamed"
    for number, path in enumerate(sorted(images.glob("*/*"), reverse=True)):
        (renamed / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, renamed / path.parent.name / f"{number:03d}.png")
    header, *rows = table.read_text().splitlines()
    shuffled = tmp_path / "other.csv"
    shuffled.write_text("\n".join([header, *np.random.default_rng(1).permutation(rows)]) + "\n")
    second = shutil.copytree(built_home, tmp_path / "second")
    for model, one, other in (("tiny-lite", images, renamed), ("tiny-bert", table, shuffled)):
        found = []
        for data, home in ((one, {}), (other, {"ZOO_HOME": str(second)})):
            done = zoo(
                "finetune", model, data, "-o", tmp_path / "out", "--epochs", 8, "--head", "mlp:16", "--json", **home
            )
            said = parsed(done)["finetune"]
            assert said["features_computed"] == said["items"]
            found.append((*head_and_split(tmp_path / "out"), msgspec.json.encode(said["metrics"])))
        assert found[0] == found[1]
        zoo("finetune", model, one, "-o", tmp_path / "out", "--epochs", 8, "--head", "mlp:16", "--seed", 1)
        assert head_and_split(tmp_path / "out")[0] != found[0][0]
