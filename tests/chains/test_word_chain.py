"""The whole chain with word vectors, by the same verbs as for BERT: pull, finetune, export, evaluate, run, verify."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from zoo_plugins.backbones.word2vec import Word2Vec

from tests.kit.bundles import check_bundle
from tests.kit.cli import zoo as command
from tests.kit.docs import README, run_python, snippet
from tests.kit.items import TOPICS, write_texts
from tests.kit.word_tables import WORDS, binary, entry, row, text, vectors, write_list, write_registry, write_table
from zoo import DataError, FinetuneOptions, GateError, IntegrityError, MissingExtraError, RegistryError, Zoo
from zoo.bundle import Bundle
from zoo.schema import TextPreprocess
from zoo.store.store import stored_file
from zoo.system.files import sha256_file

DIM = 16
TABLE = vectors(len(WORDS), DIM)
#: Code after which a process cannot import torch.
NO_TORCH = "import sys; sys.modules['torch'] = None\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the registry file `words.json`: a row for each format and for each policy for unknown words."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "v.bin").write_bytes(binary(WORDS, TABLE))
    (folder / "v.vec").write_bytes(text(WORDS, TABLE, end=" \n"))
    (folder / "v.txt").write_bytes(text(WORDS, TABLE, header=False))
    npy, tensors = (write_table(folder / name, TABLE) for name in ("t.npy", "t.safetensors"))
    parquet, listed = (write_list(folder / name, WORDS) for name in ("w.parquet", "w.ids.json"))
    rows = {
        "bin": row(folder / "v.bin", None, DIM),
        "vec": row(folder / "v.vec", None, DIM),
        "glove": row(folder / "v.txt", None, DIM),
        "npy": row(npy, parquet, DIM),
        "tensors": row(tensors, listed, DIM),
        "zero": row(folder / "v.bin", None, DIM, unknown="zero"),
        "token": row(folder / "v.bin", None, DIM, unknown="token", unknown_token="##"),
        "short": row(folder / "v.bin", None, DIM, max_length=3),
        "cased": row(folder / "v.bin", None, DIM, lowercase=False),
    }
    write_registry(folder / "words.json", rows)
    home = folder / "home"
    zoo = Zoo(home=home, registry=folder / "words.json")
    for name in rows:
        zoo.graph(name)
    return folder


@pytest.fixture
def words(made: Path, zoo_home: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    """The registry of `made` with this test's copy of a ZOO_HOME in which every row is built."""
    shutil.copytree(made / "home", zoo_home)
    monkeypatch.setenv("ZOO_REGISTRY", str(made / "words.json"))
    return Zoo()


def mean(*known: str, of: int | None = None) -> np.ndarray:
    """The mean of these words' vectors."""
    return np.sum([TABLE[WORDS.index(word)] for word in known], 0) / (of or len(known))


@pytest.mark.parametrize("name", ["bin", "vec", "glove", "npy", "tensors"])
def test_features_are_the_mean_of_the_words_vectors(words: Zoo, name: str) -> None:
    texts = ["The card", "money, money... KING", "東京 qqq naïve 's", "🙂"]
    got = words.session(name, "cpu").features(texts)
    wanted = [mean("the", "card"), mean("money", "money", "king"), mean("東京", "naïve"), mean("🙂")]
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    bundle = words.graph(name)
    assert bundle.manifest.parity.passed
    assert (bundle.path / "vectors.bin").read_bytes() == TABLE.tobytes()
    assert words.graph(name).path.stat().st_mtime_ns == bundle.path.stat().st_mtime_ns


def test_what_an_unknown_word_counts(words: Zoo) -> None:
    text = ["the qqq card"]
    for name, wanted in (
        ("bin", mean("the", "card")),
        ("zero", mean("the", "card", of=3)),
        ("token", mean("the", "##", "card")),
        ("short", mean("the", "card")),
    ):
        np.testing.assert_allclose(words.session(name, "cpu").features(text)[0], wanted, atol=1e-5)
    np.testing.assert_allclose(
        words.session("short", "cpu").features(["the a my card"])[0], mean("the", "a", "my"), atol=1e-5
    )
    cased = words.session("cased", "cpu").features(["King", "king"])
    np.testing.assert_allclose(cased, [mean("King"), mean("king")], atol=1e-5)


def test_a_text_without_a_known_word_is_named(words: Zoo) -> None:
    session = words.session("bin", "cpu")
    with pytest.raises(DataError, match=f"^no word of 'qqq zzz' is among the {len(WORDS)} words") as caught:
        session.features(["the card", "qqq zzz", "money"])
    assert caught.value.exit_code == 2
    assert not words.session("zero", "cpu").features(["qqq zzz"]).any()
    np.testing.assert_allclose(words.session("token", "cpu").features(["qqq"])[0], mean("##"), atol=1e-6)


@pytest.mark.parametrize("name", ["bin", "zero", "token"])
def test_the_bare_graph_gives_zeros_and_not_nan(words: Zoo, name: str) -> None:
    bundle = words.graph(name)
    for feeds in (
        {"input_ids": np.full((2, 5), len(WORDS)), "attention_mask": np.ones((2, 5), np.int64)},
        {"input_ids": np.full((1, 3), 7), "attention_mask": np.zeros((1, 3), np.int64)},
        {"input_ids": np.array([[-1, 1 << 40]]), "attention_mask": np.ones((1, 2), np.int64)},
    ):
        [features] = bare(bundle).run(None, feeds)
        assert features.shape == (len(feeds["input_ids"]), DIM)
        assert not features.any()


def bare(bundle: Bundle) -> object:
    """A session that opens the model by its path, as a bare runtime does."""
    from zoo.runtime.device import onnxruntime

    return onnxruntime().InferenceSession(str(bundle.model), providers=["CPUExecutionProvider"])


def test_a_text_without_a_known_word_is_named_by_its_row(words: Zoo, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "tickets.csv")
    words.finetune("npy", data, tmp_path / "out", FinetuneOptions(epochs=1))
    rows = data.read_text().splitlines()
    (tmp_path / "odd.csv").write_text("\n".join([*rows[:16], f"qqq zzz,{rows[1].rpartition(',')[2]}", *rows[16:]]))
    wanted = f"^odd.csv:17: no word of 'qqq zzz' is among the {len(WORDS)} words"
    items, names = words.inputs("npy", [str(tmp_path / "odd.csv")])
    # A training may leave out one item in a hundred.
    found = words.finetune("npy", tmp_path / "odd.csv", tmp_path / "new", FinetuneOptions(epochs=1))
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith("odd.csv:17 (no word of 'qqq zzz'")
    with pytest.raises(DataError, match=r"odd\.csv:17 \(no word of 'qqq zzz'"):
        words.finetune("npy", tmp_path / "odd.csv", tmp_path / "new", FinetuneOptions(max_bad=0))
    with pytest.raises(DataError, match=r"odd\.csv:17 \(no word of 'qqq zzz'") as caught:
        words.evaluate(str(tmp_path / "out"), tmp_path / "odd.csv")
    assert caught.value.path == "odd.csv:17"
    with pytest.raises(DataError, match=wanted) as caught:
        words.run("npy", items, names=names)
    assert caught.value.path == "odd.csv:17"
    with pytest.raises(DataError, match=r"^#1: a text model reads str, not int"):
        words.run("npy", ["the card", 3])


def test_verify_hashes_the_prepared_form(words: Zoo) -> None:
    prepared = words.pull("npy") / "prepared"
    assert {f"prepared/{path.name}" for path in prepared.iterdir()} < {file.path for file, _ in words.verify("npy")}
    assert all(is_same for _, is_same in words.verify("npy"))
    for path in sorted(prepared.iterdir()):
        data, status = path.read_bytes(), path.stat()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert [file.path for file, is_same in words.verify("npy") if not is_same] == [f"prepared/{path.name}"]
        path.write_bytes(data)
    path.write_bytes(data[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    done = command("verify", "npy")
    assert done.returncode == 5, done.stderr
    assert f"npy/prepared/{path.name}" in done.stderr
    # As the hint says, damaged files are made again, though their size and mtime are unchanged.
    words.pull("npy")
    assert path.read_bytes() == data
    assert all(is_same for _, is_same in words.verify("npy"))


def test_the_chain(words: Zoo, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "tickets.csv")
    outcome = words.finetune("npy", data, tmp_path / "out", FinetuneOptions(val=0.3))
    assert outcome.metrics.accuracy > 0.8
    assert outcome.computed == outcome.items == 120
    check_bundle(words, tmp_path / "out", data, held=36)
    for name in ("out", "exported"):
        listed = {file.path for file in Bundle.open(tmp_path / name).manifest.files}
        assert {"model.onnx", "vectors.bin", "tokenizer.json", "head.safetensors"} <= listed
        assert (tmp_path / name / "model.onnx").stat().st_size < 20_000
    assert words.finetune("npy", data, tmp_path / "out", FinetuneOptions(val=0.3)).computed == 0


def test_readmes_snippet_runs_on_word_vectors_unchanged(words: Zoo, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "tickets.csv")
    words.finetune("vec", data, tmp_path / "tickets-model", FinetuneOptions(lr=1e-2))
    said = run_python(snippet(README, "texts"), tmp_path)
    texts = ["my card was charged twice", "the parcel is late"]
    answers = words.run(str(tmp_path / "tickets-model"), texts, device="cpu").answers
    assert said.strip() == str([answer.labels[0][0] for answer in answers])


def test_no_torch_but_to_train(words: Zoo, tmp_path: Path) -> None:
    """Building, parity check, export and run of word vectors need no torch, also for a fine-tuned bundle."""
    tuned, data = str(tmp_path / "tuned"), write_texts(tmp_path / "tickets.csv")
    words.finetune("bin", data, Path(tuned), FinetuneOptions(epochs=1))
    shutil.rmtree(words.store.graphs)
    site = tmp_path / "site"
    site.mkdir()
    # The child process that builds the graph has no torch, either.
    (site / "sitecustomize.py").write_text(NO_TORCH)
    code = (
        "from pathlib import Path; from zoo import Zoo; from zoo.bundle import Bundle\n"
        f"zoo = Zoo(); zoo.export('bin', Path({str(tmp_path / 'out')!r}))\n"
        f"print(len(zoo.run({str(tmp_path / 'out')!r}, ['the card']).answers[0].features))\n"
        f"zoo.export({tuned!r}, Path({tuned + '2'!r}))\n"
        f"print(len(zoo.run({tuned + '2'!r}, ['the card']).answers[0].labels))"
    )
    assert run_python(code, tmp_path, PYTHONPATH=str(site), ZOO_DEVICE="cpu").split() == [str(DIM), str(len(TOPICS))]


def test_the_reference_does_not_see_the_prepared_form(words: Zoo, tmp_path: Path) -> None:
    """The parity check refuses a conversion that swaps the vectors of two words, and nothing is written."""
    zoo, name = words, "bin"
    folder = zoo.pull(name)
    prepared = folder / "prepared"
    rows = np.fromfile(prepared / "vectors.bin", np.float32).reshape(-1, DIM)
    swapped = rows.copy()
    swapped[:40] = rows[:40][::-1]
    (prepared / "vectors.bin").write_bytes(swapped.tobytes())
    from zoo.words import table as kit

    found = msgspec.json.decode((prepared / "prepared.json").read_bytes(), type=kit._Prepared)
    files = tuple(stored_file(prepared, file.path, sha256_file(prepared / file.path)) for file in found.files)
    (prepared / "prepared.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(found, files=files)))
    shutil.rmtree(zoo.store.graphs)
    with pytest.raises(GateError, match="parity: features"):
        zoo.graph(name)
    assert not any(zoo.store.graphs.glob("bin-*"))


def test_an_unknown_token_must_be_a_word(tmp_path: Path) -> None:
    (tmp_path / "v.bin").write_bytes(binary(WORDS, TABLE))
    odd = row(tmp_path / "v.bin", None, DIM, unknown="token", unknown_token="<unk>")
    zoo = Zoo(registry=write_registry(tmp_path / "registry.json", {"odd": odd}))
    with pytest.raises(RegistryError, match="'<unk>' is not among the words"):
        zoo.graph("odd")
    for wrong in ({"unknown": "token"}, {"unknown_token": "the"}):
        bad = row(tmp_path / "v.bin", None, DIM, **wrong)
        with pytest.raises(RegistryError, match="unknown_token"):
            _ = Zoo(registry=write_registry(tmp_path / "registry.json", {"odd": bad})).registry


def test_pull_prepares_and_an_older_pull_is_prepared_when_it_is_used(made: Path, zoo_home: Path) -> None:
    zoo = Zoo(registry=made / "words.json")
    folder = zoo.pull("npy")
    assert (folder / "prepared/prepared.json").is_file()
    shutil.rmtree(folder / "prepared")
    assert zoo.run("npy", ["king"], top=1).answers[0].words
    assert (folder / "prepared/prepared.json").is_file()
    assert all(is_same for _, is_same in zoo.verify("npy"))


def test_a_missing_extra_is_said_before_the_download(made: Path, tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'pyarrow' else find(name, *rest)\n"
        "sys.argv[1:] = ['pull', sys.argv[1]]\nfrom zoo_cli.app import main\nmain()"
    )
    environment = {**os.environ, "ZOO_REGISTRY": str(made / "words.json")}
    for name, code_wanted in (("npy", 3), ("tensors", 0)):
        done = subprocess.run(
            [sys.executable, "-c", code, name], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code_wanted, done.stderr
        assert ("hint: pip install 'backbone-zoo[words]'" in done.stderr) == (code_wanted == 3)
        assert any((Path(os.environ["ZOO_HOME"]) / "models").glob(f"{name}/*")) == (code_wanted == 0)


def test_a_pull_does_not_need_the_plugin(made: Path, zoo_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_PLUGINS", "file")
    zoo = Zoo(registry=made / "words.json")
    folder = zoo.pull("bin")
    assert not (folder / "prepared").exists()
    monkeypatch.delenv("ZOO_PLUGINS")
    assert Zoo(registry=made / "words.json").run("bin", ["king"]).answers[0].words


def test_a_file_that_is_not_what_the_row_says_is_exit_5(tmp_path: Path) -> None:
    path = tmp_path / "v.bin"
    path.write_bytes(binary(WORDS, TABLE, header="4000000000 300"))
    zoo = Zoo(registry=write_registry(tmp_path / "registry.json", {"liar": row(path, None, 300)}))
    with pytest.raises(IntegrityError, match="announces 4,000,000,000 words of 300"):
        zoo.pull("liar")


def test_require_names_the_smallest_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    for packages, wanted in (
        (("numpy", "pyarrow"), "[words]"),
        (("onnxruntime", "numpy", "pyarrow"), "[gpu,words]"),
        (("torch",), "[train]"),
    ):
        with pytest.raises(MissingExtraError) as caught:
            extras.require("this", *packages)
        assert wanted in (caught.value.hint or "")


def test_reference_is_numpy_on_the_original_files(tmp_path: Path) -> None:
    (tmp_path / "v.bin").write_bytes(binary(WORDS, TABLE))
    family = Word2Vec(entry(tmp_path / "v.bin", None, DIM), tmp_path)
    feeds = {"input_ids": np.array([[0, 3, len(WORDS), 5]]), "attention_mask": np.array([[1, 1, 1, 0]])}
    np.testing.assert_allclose(family.reference(feeds)["features"][0], (TABLE[0] + TABLE[3]) / 2, atol=1e-6)
    assert not (tmp_path / "prepared").exists()


def test_bundles_of_before_stay_as_they_were() -> None:
    """Fields with default values are not written, because the preprocessing in old model files is compared as text."""
    plain = TextPreprocess(tokenizer="tokenizer.json", max_length=9, pooling="mean", normalize=True)
    assert "unknown_token" not in msgspec.json.encode(plain).decode()
    assert "unknown_token" in msgspec.json.encode(msgspec.structs.replace(plain, unknown_token="?")).decode()


def test_topics_are_known() -> None:
    """The words of the chain's texts are in the table."""
    assert {word for words in TOPICS.values() for word in words.split()} <= set(WORDS)
    assert json.loads(json.dumps(WORDS)) == WORDS
