"""Bridged models by the real command line: after one pull they work offline, like registry rows."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.kit.cli import fails, parsed, zoo
from tests.kit.hub import COMMIT, TOKEN, FakeHub
from tests.kit.items import write_images, write_texts
from tests.kit.libraries import hub_repo, pooled, write_encoder, write_timm
from zoo import Bundle, PluginError, Zoo
from zoo.bridge import Bridge, Reference, parse_reference
from zoo.data.images import decode_image
from zoo.data.labels import imagenet
from zoo.data.samples import FOLDER
from zoo.data.tokenizers import TextEncoder
from zoo.errors import NotFoundError
from zoo.export.reference import pillow_pixels
from zoo.graph import edit
from zoo.registry.bridged import Bridged
from zoo.runtime.ort import create_session
from zoo.schema import FEATURES, IMAGE, PIXELS, Entry, ImagePreprocess

LATER = "89abcdef0123456789abcdef0123456789abcdef"
THIRD = "fedcba98fedcba98fedcba98fedcba98fedcba98"
#: An address at which nothing listens.
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The Hub to which the children send their requests."""
    with FakeHub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.origin)
        yield running


def test_a_timm_model_goes_the_whole_way(server: FakeHub, tmp_path: Path, zoo_home: Path) -> None:
    import torch
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    name = "timm/test_convnext.r160_in1k"
    model = write_timm(tmp_path / "repo", "test_convnext")
    server.add(name, COMMIT, hub_repo(tmp_path / "repo"))
    done = zoo("pull", name, "--trust-first")
    assert done.returncode == 0, done.stderr
    assert f"next: zoo finetune {name} DATA -o DIR" in done.stderr
    assert Path(done.stdout.strip()).is_relative_to(zoo_home / "models" / name)
    assert set(json.loads((zoo_home / "zoo.lock").read_text())["entries"][name]) == {"config.json", "model.safetensors"}

    # From here on nothing sends a request to the Hub.
    gone = {"HF_ENDPOINT": NOWHERE, "ZOO_OFFLINE": "1"}
    assert zoo("list", "test_convnext", "--pulled", "-q", **gone).stdout == f"{name}\n"
    assert zoo("pull", name, **gone).stdout == done.stdout
    data = write_images(tmp_path / "data")
    tuned = zoo("finetune", name, data, "-o", tmp_path / "out", "--val", "0.3", "--lr", "0.01", **gone)
    assert tuned.returncode == 0, tuned.stderr
    done = zoo("run", tmp_path / "out", data / "red" / "00.png", "--device", "cpu", "--json", **gone)
    answer = parsed(done)["run"]
    assert {label["name"] for label in answer["results"][0]["labels"]} == {"red", "green", "blue"}
    assert zoo("export", tmp_path / "out", "-o", tmp_path / "onnx", **gone).returncode == 0
    assert zoo("verify", name, **gone).returncode == 0

    # The exported file on images, compared with timm from end to end.
    bundle = Bundle.open(next((zoo_home / "graphs" / "timm").iterdir()))
    preprocess = bundle.manifest.preprocess
    assert isinstance(preprocess, ImagePreprocess)
    model.reset_classifier(0)
    transform = create_transform(**resolve_data_config(pretrained_cfg=model.pretrained_cfg))
    import onnx

    whole = onnx.load_from_string(bundle.read_model())
    body = create_session(edit.extract(whole, [PIXELS], [FEATURES]).SerializeToString(), "cpu")
    for path in sorted(FOLDER.glob("*.jpg"))[:3]:
        pixels = transform(Image.open(path).convert("RGB"))[None]
        with torch.inference_mode():
            wanted = model(pixels).numpy()
        np.testing.assert_allclose(body.run(None, {PIXELS: pixels.numpy()})[0], wanted, atol=1e-4)
        image = decode_image(path, 10_000)
        prepared = create_session(bundle.read_model(), "cpu").run(None, {IMAGE: image[None]})[0]
        ours = pillow_pixels(image, preprocess)[None]
        np.testing.assert_allclose(prepared, body.run(None, {PIXELS: ours})[0], atol=0.02)


@pytest.mark.parametrize(
    ("kind", "family"), [("Bert", "bert"), pytest.param("Electra", "transformers", marks=pytest.mark.slow)]
)
def test_a_text_model_goes_the_whole_way(
    server: FakeHub, tmp_path: Path, zoo_home: Path, kind: str, family: str
) -> None:
    model = write_encoder(tmp_path / "repo", kind, **({"embedding_size": 32} if kind == "Electra" else {}))
    server.add("Acme/Net-v1.5", COMMIT, hub_repo(tmp_path / "repo"))
    shown = parsed(zoo("show", "hf/Acme/Net-v1.5", "--json"))["model"]
    assert (shown["name"], shown["pinned"], shown["dim"]) == ("hf/acme/net-v1.5", False, 32)
    said = "neither the registry nor zoo.lock has the sha256 of config.json, tokenizer.json, model.safetensors"
    hint = fails(5, said, "pull", "hf/Acme/Net-v1.5")
    assert hint == "hint: zoo pull hf/Acme/Net-v1.5 --trust-first"
    assert not (zoo_home / "bridged").exists()
    done = zoo("pull", "hf/Acme/Net-v1.5", "--trust-first")
    assert done.returncode == 0, done.stderr
    gone = {"HF_ENDPOINT": NOWHERE, "ZOO_OFFLINE": "1"}
    listed = parsed(zoo("list", "net-v1.5", "--json", **gone))["models"]
    assert [(row["name"], row["family"], row["pulled"]) for row in listed] == [("hf/acme/net-v1.5", family, True)]
    if family == "bert":
        data, out = write_texts(tmp_path / "tickets.csv"), tmp_path / "out"
        tuned = zoo("finetune", "hf/acme/net-v1.5", data, "-o", out, "--val", "0.3", "--lr", "0.01", **gone)
        assert tuned.returncode == 0, tuned.stderr
        answer = parsed(zoo("run", out, "my parcel is late", "--device", "cpu", "--json", **gone))["run"]
        assert answer["results"][0]["labels"][0]["name"] == "delivery"
    # Other spellings name the same model, and the built graph is used again.
    again = parsed(zoo("run", "hf/Acme/Net-v1.5", "my parcel is late", "--device", "cpu", "--json", **gone))["run"]
    assert len(again["results"][0]["features"]) == 32

    bundle = Bundle.open(next((zoo_home / "graphs" / "hf" / "acme").iterdir()))
    encoder = TextEncoder(bundle.manifest.preprocess, bundle.path)  # type: ignore[arg-type]
    feeds = encoder.batch(encoder.tokens(["my parcel is late", "card charged", "a " * 100]))
    wanted = pooled(model, feeds, pooling="cls", normalize=True)
    np.testing.assert_allclose(create_session(bundle.read_model(), "cpu").run(None, feeds)[0], wanted, atol=1e-5)
    theirs = json.loads((tmp_path / "repo" / "tokenizer.json").read_text())
    assert json.loads((bundle.path / "tokenizer.json").read_text()) == theirs


def test_another_revision_is_only_taken_when_a_pull_names_it(server: FakeHub, tmp_path: Path, zoo_home: Path) -> None:
    write_encoder(tmp_path / "first")
    write_encoder(tmp_path / "second", pooling="mean")
    server.add("acme/net", COMMIT, hub_repo(tmp_path / "first"))
    name, kept = "hf/acme/net", zoo_home / "bridged" / "hf" / "acme" / "net.json"
    assert zoo("pull", name, "--trust-first").returncode == 0
    before = kept.read_bytes()
    server.add("acme/net", LATER, hub_repo(tmp_path / "second"))
    assert zoo("pull", name).returncode == 0
    assert zoo("pull", f"{name}@{COMMIT[:12]}").returncode == 0
    assert kept.read_bytes() == before
    # The new files were never trusted, and the hint says how to trust them.
    hint = fails(5, "neither the registry nor zoo.lock has", "pull", f"{name}@main")
    assert hint == f"hint: zoo pull {name}@main --trust-first"
    assert kept.read_bytes() == before
    done = zoo("pull", f"{name}@main", "--trust-first")
    assert done.returncode == 0, done.stderr
    entry = parsed(zoo("show", name, "--json"))["model"]
    assert entry["preprocess"]["pooling"] == "mean"
    assert all(f"@{LATER}/" in file["sources"][0] for file in entry["files"])
    assert zoo("pull", f"{name}@nowhere").returncode == 3
    # A pull that names a branch looks it up again; the other verbs use the pulled commit.
    server.add("acme/net", THIRD, hub_repo(tmp_path / "first"))
    assert zoo("verify", f"{name}@main").returncode == 0
    fails(5, "neither the registry nor zoo.lock has", "pull", f"{name}@main")
    assert zoo("pull", f"{name}@main", "--trust-first").returncode == 0
    assert f"@{THIRD}/" in kept.read_text()


def test_an_entry_that_an_earlier_version_kept_is_made_again(server: FakeHub, tmp_path: Path, zoo_home: Path) -> None:
    """Entries had no heads: online the entry is made again at its commit, offline the kept one still works."""
    name = "timm/test_convnext.r160_in1k"
    write_timm(tmp_path / "repo", "test_convnext")
    server.add(name, COMMIT, hub_repo(tmp_path / "repo"))
    assert zoo("pull", name, "--trust-first").returncode == 0
    kept = zoo_home / "bridged" / f"{name}.json"
    record = json.loads(kept.read_text())
    assert record["form"] == 2
    assert record["entry"]["head"] == {"labels": "imagenet-1k"}
    old = {key: value for key, value in record.items() if key != "form"}
    old["entry"] = {key: value for key, value in record["entry"].items() if key not in ("head", "no_head")}
    kept.write_text(json.dumps(old))
    image = FOLDER / "coffee.jpg"
    offline = zoo("run", name, image, HF_ENDPOINT=NOWHERE, ZOO_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert " features: " in offline.stdout
    unreachable = zoo("show", name, HF_ENDPOINT=NOWHERE)
    assert unreachable.returncode == 0, unreachable.stderr
    assert (
        "head:        none: its entry names no classifier. If an earlier zoo pulled it: zoo pull timm/"
        in unreachable.stdout
    )
    # The repository has moved on; the model stays at the commit that was trusted.
    write_timm(tmp_path / "later", "test_convnext", num_classes=3)
    server.add(name, LATER, hub_repo(tmp_path / "later"))
    online = zoo("run", name, image, "--top", 1)
    assert online.returncode == 0, online.stderr
    assert online.stdout.partition("\t")[2].rpartition(" ")[0] in imagenet().names
    assert json.loads(kept.read_text())["entry"] == record["entry"]
    assert json.loads(kept.read_text())["form"] == 2


def test_wrong_bytes_are_refused_and_nothing_is_kept(server: FakeHub, tmp_path: Path, zoo_home: Path) -> None:
    """The Hub announces the digest of a large file, so that --trust-first does not accept other bytes."""
    write_encoder(tmp_path / "repo")
    repo = hub_repo(tmp_path / "repo")
    repo.announced["model.safetensors"] = "a" * 64
    server.add("acme/net", COMMIT, repo)
    fails(5, "sent other bytes", "pull", "hf/acme/net", "--trust-first")
    assert not (zoo_home / "bridged").exists()
    assert not (zoo_home / "zoo.lock").exists()


def test_errors_of_the_hub_have_their_exit_codes(server: FakeHub, tmp_path: Path) -> None:
    write_encoder(tmp_path / "repo")
    repo = hub_repo(tmp_path / "repo")
    repo.is_gated = True
    server.add("acme/gated", COMMIT, repo)
    assert "HF_TOKEN" in fails(8, "denies access", "pull", "hf/acme/gated", "--trust-first")
    assert zoo("pull", "hf/acme/gated", "--trust-first", HF_TOKEN=TOKEN).returncode == 0
    fails(3, "no such repository", "pull", "hf/acme/nothing")
    fails(3, "not a repository", "show", "hf/gpt2")
    fails(4, "zoo is offline", "pull", "--offline", "hf/acme/nothing")
    fails(4, "the Hub client is offline", "pull", "hf/acme/nothing", HF_HUB_OFFLINE="1")
    fails(4, "cannot be reached", "pull", "hf/acme/nothing", HF_ENDPOINT=NOWHERE)


def test_a_folder_of_that_name_is_written_with_a_dot(shelf: Path, tmp_path: Path, built_home: Path) -> None:
    shutil.copytree(next(built_home.glob("graphs/tiny-bert-*")), tmp_path / "hf" / "mine")
    here = os.getcwd()  # noqa: PTH109 - chdir below
    try:
        os.chdir(tmp_path)
        assert zoo("show", "./hf/mine").returncode == 0
        hint = fails(3, "not a repository", "show", "hf/mine")
        assert "hf/ORG/NAME" in hint
        hint = fails(3, "not a repository", "run", "hf/mine", "a text", "--device", "cpu")
        assert "./hf/mine" in hint
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("timm/resnet18.a1_in1k", ("timm", "resnet18.a1_in1k", None)),
        ("hf/BAAI/bge@v1", ("hf", "BAAI/bge", "v1")),
        ("timm/resnet18@", ("timm", "resnet18", "")),
        ("hf/a/b@refs/pr/1", ("hf", "a/b", "refs/pr/1")),
        *((text, None) for text in ("resnet18", "./timm/x", "../x", "/timm/x", "timm/", "hf//x", "hf/a/b/c", "")),
    ],
)
def test_references(text: str, wanted: tuple[str, str, str | None] | None) -> None:
    assert parse_reference(text) == wanted


class Odd(Bridge):
    """A bridge whose answer the test chooses."""

    prefix = "odd"
    answer: Entry

    def entry(self, name: str, revision: str | None) -> Entry:
        return self.answer


def bridged(folder: Path, answer: object) -> Bridged:
    bridge = Odd()
    bridge.answer = answer  # type: ignore[assignment]
    return Bridged(folder, lambda: ["odd"], lambda prefix: bridge, offline=False)


def test_a_bridge_that_breaks_its_contract_is_named(shelf: Path, tmp_path: Path) -> None:
    import msgspec

    row, model = Zoo().entry("tiny-bert"), Reference("odd", "x", None)
    for answer in (None, {"name": "odd/x"}):
        with pytest.raises(NotFoundError, match="odd/x does not fit zoo's schema"):
            bridged(tmp_path, answer).entry(model)
    with pytest.raises(PluginError, match="the bridge odd/ gives a object, not an Entry"):
        bridged(tmp_path, object()).entry(model)
    with pytest.raises(PluginError, match="gives odd/x the name 'tiny-bert'"):
        bridged(tmp_path, row).entry(model)
    with pytest.raises(NotFoundError, match="does not fit zoo's schema"):
        bridged(tmp_path, msgspec.structs.replace(row, name="odd/../x")).entry(model)
    good = bridged(tmp_path / "kept", msgspec.structs.replace(row, name="odd/x"))
    good.keep(model)
    assert list(good.kept()) == []
    entry = good.entry(model)
    good.keep(model)
    # Also without its bridge.
    alone = Bridged(tmp_path / "kept", list, lambda prefix: pytest.fail("asked"), offline=True)
    assert [alone.reference("odd/X"), alone.reference("odd/y")] == [("odd", "X", None), None]
    assert list(alone.kept()) == [alone.entry(model)] == [entry]


def test_a_damaged_kept_entry_costs_that_model_alone(
    shelf_file: Path, zoo_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import msgspec

    monkeypatch.setenv("ZOO_REGISTRY", str(shelf_file))
    row, folder = Zoo().entry("tiny-bert"), zoo_home / "bridged"
    for name in ("x", "y"):
        good = bridged(folder, msgspec.structs.replace(row, name=f"odd/{name}"))
        model = Reference("odd", name, None)
        good.entry(model)
        good.keep(model)
    path = folder / "odd" / "x.json"
    (folder / "odd" / ".x.json").write_text("{")
    for damage, said in (
        (b"{", "is damaged"),
        (b'"\xff"', "is damaged"),
        ((folder / "odd/y.json").read_bytes(), "of odd/y"),
    ):
        path.write_bytes(damage)
        listed = zoo("list", "-q")
        assert listed.returncode == 0, listed.stderr
        assert "odd/y" in listed.stdout
        assert "odd/x" not in listed.stdout
        warnings = [line for line in listed.stderr.splitlines() if line.startswith("warning: ")]
        assert len(warnings) == 1
        assert str(path) in warnings[0]
        hint = fails(5, said, "show", "odd/x")
        assert hint == "hint: delete it, and pull the model again"
    fails(5, "of odd/y", "pull", "odd/x")
    verified = zoo("verify")
    assert (verified.returncode, verified.stderr.count("warning: ")) == (0, 1), verified.stderr
    found = zoo("doctor", "--json", HF_ENDPOINT=NOWHERE)
    assert found.returncode == 5
    problems = [each for each in json.loads(found.stdout)["checks"] if each["state"] == "fail"]
    assert [(each["name"], each["fix"]) for each in problems] == [("model", "delete it, and pull the model again")]


def test_a_revision_that_is_empty_or_not_there(server: FakeHub, tmp_path: Path) -> None:
    hint = fails(2, "timm/test_vit@ has no revision after the @", "show", "timm/test_vit@")
    assert "timm/test_vit, or" in hint
    write_encoder(tmp_path / "repo")
    server.add("acme/net", COMMIT, hub_repo(tmp_path / "repo"))
    hint = fails(3, "no such commit", "show", "hf/acme/net@nosuch")
    assert "leave @nosuch out" in hint
    assert "search=" not in hint
