"""zoo run into files and as a stream: equal tables in every format, order, byte-exact resuming, pipes."""

import itertools
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.kit.cli import fails, parsed, zoo
from tests.kit.outputs import breaking, files, rows, some_texts, write_photos
from zoo import DataError, UsageError, Zoo
from zoo.outputs.resumable_file import LineWriter, OutputRecord
from zoo.outputs.table import Table
from zoo.outputs.write_rows import WriteJob, write_rows
from zoo.results import Written
from zoo.runtime.pipeline import BATCH, WINDOW

FORMATS = ("a.csv", "a.jsonl", "a.parquet")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model", ["tickets", "several", "number"])
def test_one_table_in_every_format(
    kept_shelf: Path, tuned_bundles: Path, tmp_path: Path, model: str, name: str
) -> None:
    texts, out = [*some_texts(20), '🚚 parcel, "late"\nagain', " "], tmp_path / name
    house = Zoo()
    done = house.run_to_file(str(tuned_bundles / model), iter(texts), out, device="cpu")
    assert (done.inputs, done.rows, done.failed, done.device) == (22, 21, 1, "cpu")
    session = house.session(str(tuned_bundles / model), "cpu")
    scores, found = session.scores(texts[:-1]), rows(out)
    assert [row["input"] for row in found] == [*texts[:-1], " "]
    assert found[-1] == {"input": " ", "error": "data", "message": "the text is empty"}
    answers = session.run(texts[:-1], top=3).answers
    for row, answer, wanted in zip(found[:-1], answers, scores, strict=True):
        assert "error" not in row
        if model == "number":
            assert row["value"] == pytest.approx(answer.value, rel=1e-6)
            continue
        np.testing.assert_allclose([row[label] for label in session.labels], wanted, atol=1e-6)
        if model == "tickets":
            assert (row["label"], row["score"]) == (answer.labels[0][0], pytest.approx(answer.labels[0][1], abs=1e-6))
        else:
            assert row.get("labels", "") == "|".join(sorted(answer.chosen or ()))


def test_the_record_says_what_made_it(kept_shelf: Path, tuned_bundles: Path, tmp_path: Path) -> None:
    out, house = tmp_path / "a.parquet", Zoo()
    done = house.run_to_file(str(tuned_bundles / "tickets"), ["my card"], out, device="cpu")
    record = OutputRecord.read(out, "run")
    assert record is not None
    assert OutputRecord.read(out, "embed") is None
    manifest = house.open(str(tuned_bundles / "tickets")).manifest
    assert record.answering is not None
    assert record.answering.labels == manifest.labels
    assert record.answering.preprocess == manifest.preprocess
    assert (record.fingerprint, record.precision, record.complete) == (done.fingerprint, "fp32", True)
    from pyarrow import parquet

    stored = (parquet.read_schema(out).metadata or {})[b"zoo.answers"]
    assert msgspec.structs.replace(msgspec.json.decode(stored, type=OutputRecord), sizes=record.sizes) == record
    # The same features with another head give other answers.
    other = house.run_to_file(str(tuned_bundles / "other"), ["my card"], tmp_path / "b.csv", device="cpu")
    assert other.fingerprint != done.fingerprint


def test_the_command(kept_shelf: Path, tuned_bundles: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "t.csv", tmp_path / "a.csv"
    table.write_text("words,n\nmy card,1\n,2\nlate parcel,3\n")
    command = ("run", tuned_bundles / "tickets", table, "login code", "--text", "words", "-o", out)
    done = zoo(*command)
    assert (done.returncode, done.stdout) == (1, f"{out}\n")
    assert "t.csv:3 has an empty 'words' (fill or remove the row)" in done.stderr
    assert "error: no answer for 1 of 4 inputs" in done.stderr
    assert "it/s" in done.stderr
    found = rows(out)
    assert [row["input"] for row in found] == ["t.csv:2", "t.csv:3", "t.csv:4", "login code"]
    assert out.read_text().splitlines()[0] == "input,label,score,account,billing,delivery,error,message"
    said = json.loads(zoo(*command, "--json").stdout)["run"]
    assert (said["inputs"], said["failed"], said["placement"]["used"]) == (4, 1, "cpu")
    assert said["failures"][0]["input"] == "t.csv:3"
    fails(2, "t.csv:3 has an empty 'words'", *command, "--strict")
    assert len(rows(out)) == 4
    table.write_text("words,n\nmy card,1\nbill,2\nlate parcel,3\n")
    assert parsed(zoo(*command, "--json"))["run"]["rows"] == 4
    fails(2, "--resume needs the file to continue", "run", tuned_bundles / "tickets", "x", "--resume")
    fails(3, "nowhere.txt: no such file", "run", tuned_bundles / "tickets", "-", "nowhere.txt", "-o", out)


def test_images_of_a_table(kept_shelf: Path, tuned_bundles: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    photos = write_photos(tmp_path / "photos", 3)
    cells = [(photos / f"{number:02}.png").read_bytes() for number in range(3)]
    parquet.write_table(pyarrow.table({"photo": cells}), tmp_path / "p.parquet")
    stored = zoo("run", tuned_bundles / "pets", tmp_path / "p.parquet", "--image", "photo")
    plain = zoo("run", tuned_bundles / "pets", photos)
    assert stored.returncode == plain.returncode == 0
    assert [line.split("\t")[0] for line in stored.stdout.splitlines()] == [f"p.parquet:{n}" for n in (1, 2, 3)]
    answers = [[line.split("\t")[1] for line in done.stdout.splitlines()] for done in (stored, plain)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", FORMATS)
def test_ctrl_c_leaves_what_resume_makes_whole(
    kept_shelf: Path, tuned_bundles: Path, tmp_path: Path, name: str
) -> None:
    photos = write_photos(tmp_path / "photos", 40)
    for bad in (2, 17, 18, 19):
        (photos / f"{bad:02}.png").write_bytes(b"no image")
    paths = [str(path) for path in sorted(photos.iterdir())]
    whole, out, house = tmp_path / "whole" / name, tmp_path / "broken" / name, Zoo()
    house.run_to_file(str(tuned_bundles / "pets"), paths, whole, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        house.run_to_file(str(tuned_bundles / "pets"), breaking(paths, 22), out, device="cpu")
    part = rows(out)
    assert 0 < len(part) < 30
    assert part == rows(whole)[: len(part)]
    with pytest.raises(UsageError, match="is unfinished"):
        house.run_to_file(str(tuned_bundles / "pets"), paths, out, device="cpu")
    done = house.run_to_file(str(tuned_bundles / "pets"), paths, out, device="cpu", resume=True)
    assert (done.resumed, done.inputs, done.failed) == (len(part), 40, 4)
    assert files(out) == files(whole)
    assert [row["input"] for row in rows(out)] == paths


def test_texts_go_on_at_a_window(kept_shelf: Path, tuned_bundles: Path, tmp_path: Path) -> None:
    texts = some_texts(2 * WINDOW + 30)
    texts[7] = ""
    whole, out, house = tmp_path / "whole" / "a.csv", tmp_path / "broken" / "a.csv", Zoo()
    house.run_to_file(str(tuned_bundles / "tickets"), texts, whole, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        house.run_to_file(str(tuned_bundles / "tickets"), breaking(texts, 2 * WINDOW + 7), out, device="cpu")
    assert len(rows(out)) == 2 * WINDOW + 7
    with pytest.raises(UsageError, match="made by another model"):
        house.run_to_file(str(tuned_bundles / "other"), texts, out, device="cpu", resume=True)
    with pytest.raises(UsageError, match="not those"):
        house.run_to_file(str(tuned_bundles / "tickets"), texts[::-1], out, device="cpu", resume=True)
    assert (
        house.run_to_file(str(tuned_bundles / "tickets"), texts, out, device="cpu", resume=True).resumed == 2 * WINDOW
    )
    assert files(out) == files(whole)


def test_outputs_that_are_not_to_be_written(kept_shelf: Path, tuned_bundles: Path, tmp_path: Path) -> None:
    house, tickets = Zoo(), str(tuned_bundles / "tickets")

    def refused(words: str, model: str = tickets, name: str = "a.csv", **more: Any) -> None:
        with pytest.raises(UsageError, match=words) as caught:
            house.run_to_file(model, ["my card"], tmp_path / name, device="cpu", **more)
        assert caught.value.hint
        assert not (tmp_path / "a.csv").exists()

    refused(r"a\.npy is not a \.csv, \.jsonl or \.parquet file", name="a.npy")
    refused("has no labels", "tiny-bert")
    refused("--top has no effect with -o", top=3)
    house.embed("tiny-bert", ["my card"], tmp_path / "v.jsonl", device="cpu")
    refused("is not an output of zoo run", name="v.jsonl")
    with pytest.raises(DataError, match="there is no input"):
        house.run_to_file(tickets, [], tmp_path / "a.csv", device="cpu")
    fails(8, "cannot be written", "run", tickets, "a", "-o", tuned_bundles / "t.csv" / "a.csv")


def counted(items: Iterator[Any], taken: list[int]) -> Iterator[Any]:
    """Yields the items and counts them in `taken`."""
    for item in items:
        taken[0] += 1
        yield item


@pytest.mark.parametrize("is_bad", [False, True])
def test_inputs_without_end(kept_shelf: Path, tuned_bundles: Path, is_bad: bool) -> None:
    """The number of inputs read ahead is bounded, also if all of them are unreadable."""
    house = Zoo()
    image = np.zeros((30, 30) if is_bad else (30, 30, 3), np.uint8)
    for model, item, ahead in (
        ("tickets", " " if is_bad else "my card", 2 * WINDOW),
        ("pets", image, 5 * BATCH["cpu"]),
    ):
        session, taken = house.session(str(tuned_bundles / model), "cpu"), [0]
        stream = session.answers(counted(itertools.repeat(item), taken), keep_going=True)
        for number, answer in enumerate(itertools.islice(stream, WINDOW + 50 if model == "tickets" else 60)):
            assert (answer.error is not None) == is_bad
            assert taken[0] <= number + ahead
        stream.close()  # type: ignore[attr-defined]


def test_answers_are_those_of_run(kept_shelf: Path, tuned_bundles: Path) -> None:
    house = Zoo()
    texts = some_texts(200)
    session = house.session(str(tuned_bundles / "tickets"), "cpu")
    wanted = session.run(texts, top=2).answers
    assert tuple(session.answers(iter(texts), top=2)) == wanted
    stream = house.answers(str(tuned_bundles / "tickets"), iter(texts), device="cpu", top=2)
    assert (stream.device, stream.entry) == ("cpu", "tiny-bert")
    assert tuple(stream) == wanted
    assert [answer.input for answer in wanted] == texts


def test_the_next_batch_is_computed_while_one_is_written(tmp_path: Path) -> None:
    is_asked = threading.Event()

    def rows_of(items: Iterable[Any], skip: object) -> Iterator[tuple[list[int], list[Any]]]:
        for position, item in enumerate(items):
            if position == 1:
                is_asked.set()
            yield [position], [item]

    def cells(found: tuple[str, Any]) -> Sequence[Any]:
        # If writing and computing took turns, `is_asked` would never be set.
        assert is_asked.wait(60)
        return found

    fresh = OutputRecord(verb="test", model="m", fingerprint="f", precision="fp32")
    table = Table(("input", "row"))
    job = WriteJob(Written, rows_of, 1, fresh, partial(LineWriter, table=table, cells=cells), "test")
    assert write_rows(job, ["a", "b", "c"], tmp_path / "out.csv", model="m").rows == 3
    assert (tmp_path / "out.csv").read_text() == "input,row\na,a\nb,b\nc,c\n"


def test_an_output_is_not_among_the_inputs(kept_shelf: Path, tuned_bundles: Path, tmp_path: Path) -> None:
    tickets, pets = tuned_bundles / "tickets", tuned_bundles / "pets"
    table = tmp_path / "answers.csv"
    table.write_text("text\nmy card\n")
    fails(2, "would be one of the inputs", "run", tickets, table, "-o", table)
    assert table.read_text() == "text\nmy card\n"
    photos = write_photos(tmp_path / "photos", 2)
    for argument in (photos, f"{photos}/*"):
        fails(2, "would be one of the inputs", "run", pets, argument, "-o", photos / "answers.csv")
    assert len(list(photos.iterdir())) == 2
    lines = tmp_path / "v.npy.jsonl"
    lines.write_text('{"text": "my card"}\n')
    fails(2, "would be one of the inputs", "embed", tickets, lines, "-o", tmp_path / "v.npy")


def test_what_is_somebody_elses_stays(kept_shelf: Path, tuned_bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "v.npy.jsonl").write_text('{"precious": 1}\n')
    words = "v.npy.jsonl is not an output of zoo embed"
    fails(2, words, "embed", tuned_bundles / "tickets", "card", "-o", tmp_path / "v.npy")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("v.")] == ["v.npy.jsonl"]
    assert (tmp_path / "v.npy.jsonl").read_text() == '{"precious": 1}\n'


def test_a_finished_output_stays_until_there_is_another_answer(
    kept_shelf: Path, tuned_bundles: Path, tmp_path: Path
) -> None:
    out, bundle = tmp_path / "a.csv", str(tuned_bundles / "tickets")
    Zoo().run_to_file(bundle, ["my card", "late parcel"], out)
    before = files(out)
    with pytest.raises(DataError):
        Zoo().run_to_file(bundle, [" ", "my card"], out, strict=True)
    assert files(out) == before
    assert Zoo().run_to_file(bundle, ["refund"], out).rows == 1


def test_two_do_not_write_one_file(kept_shelf: Path, tuned_bundles: Path, tmp_path: Path) -> None:
    out, bundle = tmp_path / "a.csv", str(tuned_bundles / "tickets")

    def slowly() -> Iterator[str]:
        yield from some_texts(WINDOW + 1)
        with pytest.raises(UsageError, match="is being written by another process"):
            Zoo().run_to_file(bundle, ["my card"], out, resume=True)
        yield "late parcel"

    assert Zoo().run_to_file(bundle, slowly(), out).rows == WINDOW + 2


def test_a_finished_parquet_stays_finished(kept_shelf: Path, tuned_bundles: Path, tmp_path: Path) -> None:
    out, bundle = tmp_path / "a.parquet", str(tuned_bundles / "tickets")
    Zoo().run_to_file(bundle, ["my card"], out)
    before = files(out)
    with pytest.raises(UsageError, match="Parquet cannot be continued"):
        Zoo().run_to_file(bundle, ["my card", "refund"], out, resume=True)
    assert files(out) == before
    assert Zoo().run_to_file(bundle, ["my card", "refund"], out).rows == 2


def test_an_error_of_the_inputs_is_not_the_outputs(kept_shelf: Path, tuned_bundles: Path, tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        # The inputs fail while one window is answered and the next one is read ahead.
        yield from some_texts(3 * WINDOW)
        raise OSError("it broke off")

    out = tmp_path / "a.csv"
    with pytest.raises(OSError, match="it broke off"):
        Zoo().run_to_file(str(tuned_bundles / "tickets"), broken(), out)
    record = OutputRecord.read(out, "run")
    assert record is not None
    assert not record.complete
