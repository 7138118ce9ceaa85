"""The documents are correct: signatures, numbers, links and commands, and every snippet is run."""

import ast
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

import zoo
from tests.kit.docs import README, ROOT, run_python, snippet
from tests.kit.installed import pip_install
from tests.kit.items import write_images, write_texts
from zoo import FinetuneOptions, Zoo, ZooError, errors

if TYPE_CHECKING:
    import torch

PLUGINS = ROOT / "docs/plugins.md"
IMAGE = "surfaces/heldout/gravel/00.png"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "zoo/assets").glob("*.md")])
HAND_WRITTEN = [page for page in PAGES if page.name != "cli.md"]
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def code(page: Path) -> Iterator[str]:
    """The code on the page: fenced blocks, and words in backticks."""
    text = page.read_text()
    yield from (block["text"] for block in BLOCK.finditer(text))
    yield from re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))


def hook_signatures() -> dict[str, str]:
    """Every hook's name and its signature as zoo/hookspecs.py spells it."""
    tree = ast.parse((ROOT / "zoo/hookspecs.py").read_text())
    hooks = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert all(hook.returns is not None for hook in hooks)
    return {hook.name: f"{hook.name}({ast.unparse(hook.args)}) -> {ast.unparse(hook.returns)}" for hook in hooks}  # type: ignore[arg-type]


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=names(HAND_WRITTEN))
def test_paths_of_the_repository_exist(page: Path) -> None:
    tops = "zoo|plugins|cli|tests|docs|demo|benchmarks"
    paths = re.findall(rf"`((?:{tops})/[\w./-]*)`", BLOCK.sub("", page.read_text()))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_hook_has_a_section_and_a_test() -> None:
    signatures = hook_signatures()
    headings = re.findall(r"^### (zoo_.*)$", PLUGINS.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(signatures.values())
    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert [hook for hook in signatures if not any(hook in test for test in tests)] == []


def error_types() -> list[type[ZooError]]:
    """ZooError and all its subclasses in zoo/errors.py."""
    return [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ZooError)]


def test_every_error_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([\w-]+)` \| (\d+) \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted((kind.__name__, kind.code, str(kind.exit_code)) for kind in error_types())


def test_the_exit_codes_are_those_of_the_error_types() -> None:
    listed = dict(re.findall(r"^\| (\d+) \| (.+) \|$", README.read_text(), re.MULTILINE))
    assert {int(number) for number in listed} == {0, 130, *(kind.exit_code for kind in error_types())}
    words = {"usage": 2, "not found": 3, "network": 4, "integrity": 5, "check failed": 6, "device": 7, "plugin": 9}
    assert {word: int(number) for word in words for number in listed if listed[number].startswith(word)} == words


def test_the_public_names_are_those_listed() -> None:
    public = {name for name, value in vars(zoo).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert zoo.__all__ == sorted(public)


@pytest.mark.parametrize("script", ["make_cli.py", "make_errors.py"])
def test_the_generated_page_is_current(script: str) -> None:
    done = subprocess.run(
        [sys.executable, f"docs/{script}", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_local_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text()))
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=names(HAND_WRITTEN))
def test_commands_that_are_named_exist(page: Path) -> None:
    """The named targets of make, verbs of zoo with their options, and variables exist."""
    shown = list(code(page))
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert {name for text in shown for name in re.findall(r"\bmake ([a-z]+)", text)} <= set(phony[1].split())
    reference = (ROOT / "docs/cli.md").read_text()
    verbs = {part.partition("`")[0]: part for part in reference.split("\n## `zoo ")[1:]}
    for verb, rest in (found for text in shown for found in re.findall(r"(?<!from )\bzoo ([a-z]+)\b(.*)", text)):
        assert verb in verbs, f"zoo {verb}"
        assert [option for option in re.findall(r"--[a-z-]+", rest) if option not in verbs[verb]] == []
    sources = "\n".join(path.read_text() for part in ("zoo", "cli", "plugins") for path in (ROOT / part).rglob("*.py"))
    sources += (ROOT / "tests/conftest.py").read_text()
    variables = {name for text in shown for name in re.findall(r"\bZOO_[A-Z_]+\b", text)}
    assert {name for name in variables if f'"{name}"' not in sources} == set()


@pytest.fixture(scope="module")
def bundles(shelf_file: Path, built_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with README's file names: a folder of images, one held-out image, and two bundles of tiny models."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(built_home, folder / "home")
    images = write_images(folder / "surfaces/train", 6)
    (folder / IMAGE).parent.mkdir(parents=True)
    Image.open(ROOT / "zoo/assets/coffee.jpg").save(folder / IMAGE)
    texts = write_texts(folder / "tickets.csv")
    house = Zoo(home=folder / "home", registry=shelf_file)
    options = FinetuneOptions(epochs=20, lr=1e-2)
    house.finetune("tiny-lite", images, folder / "surfaces-model", options)
    house.finetune("tiny-bert", texts, folder / "tickets-model", options)
    return folder


def test_images_without_zoo(bundles: Path) -> None:
    label, score = run_python(snippet(README, "images"), bundles).split()
    answer = Zoo().run(str(bundles / "surfaces-model"), [bundles / IMAGE], device="cpu").answers[0]
    assert label == answer.labels[0][0]
    # A session resizes with another library: a few pixels differ by a grey level.
    assert float(score) == pytest.approx(answer.labels[0][1], abs=0.05)


def test_texts_without_zoo(bundles: Path) -> None:
    script = snippet(README, "texts")
    said = run_python(script, bundles)
    texts = re.findall(r'"([a-z ]{10,})"', script)
    assert len(texts) == 2
    answers = Zoo().run(str(bundles / "tickets-model"), texts, device="cpu").answers
    assert ast.literal_eval(said) == [answer.labels[0][0] for answer in answers]


def test_the_snippets_without_zoo_need_no_zoo() -> None:
    for name in ("images", "texts"):
        modules = set(re.findall(r"^(?:from|import) (\w+)", snippet(README, name), re.MULTILINE))
        assert modules <= {"json", "numpy", "onnxruntime", "PIL", "tokenizers"}


def test_from_python(shelf: Path, bundles: Path, tmp_path: Path) -> None:
    shutil.copytree(bundles / "surfaces", tmp_path / "surfaces")
    script = snippet(README, "python")
    assert script.count("efficientnet_lite0") == 1
    lines = run_python(script.replace("efficientnet_lite0", "tiny-lite"), tmp_path, ZOO_DEVICE="cpu").splitlines()
    assert lines[0].split()[1] == "3"
    assert lines[1] == "cpu ('blue', 'green', 'red') (1, 3)"
    assert [name for name, _ in ast.literal_eval(lines[2])]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


@pytest.mark.network
@pytest.mark.parametrize("page", [README, ROOT / "docs/run.md"], ids=["README", "run"])
def test_the_answers_of_the_pretrained_model_are_those_shown(
    page: Path, real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block about EfficientNet-Lite0 shows the labels, scores and features that its commands print."""
    monkeypatch.chdir(ROOT)
    block = next(block["text"] for block in BLOCK.finditer(page.read_text()) if "zoo run efficient" in block["text"])
    commands = re.findall(r"^\$ zoo (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE)
    assert len(commands) == (2 if page.name == "run.md" else 1)
    for command, shown in commands:
        done = command_line(*command.split(), ZOO_DEVICE="cpu")
        assert done.returncode == 0, done.stderr
        wanted = [line for line in shown.splitlines() if "\t" in line]
        printed = done.stdout.splitlines()
        # Words, in their order. Numbers differ a little between processors.
        assert [re.findall(r"[A-Za-z/]+", line) for line in printed] == [
            re.findall(r"[A-Za-z/]+", line) for line in wanted
        ]
        for line, other in zip(printed, wanted, strict=True):
            assert numbers(line) == pytest.approx(numbers(other), abs=2e-3)


def install(site: Path, module: str, source: str, entry_points: str) -> None:
    """Install a distribution as pip does: the module, and entry points made from the documented TOML."""
    import tomllib

    groups = tomllib.loads(entry_points)["project"]["entry-points"]
    assert [value for group in groups.values() for value in group.values()] == [module]
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in points.items())
        for group, points in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def command_line(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zoo_cli", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def random_mobilenet(path: Path) -> "torch.nn.Module":
    """Write the checkpoint of torchvision's network with random weights; returns the network without its classifier."""
    import torch
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    network = mobilenet_v2()
    # With initial batch-norm statistics random activations vanish layer by layer: use those of a few random images.
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 224, 224))
    torch.save(network.state_dict(), path)
    network.classifier = torch.nn.Identity()
    return network.eval()


@pytest.mark.slow
def test_the_family_of_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps of the tutorial with random weights: check, finetune, run; the features equal torchvision's."""
    import tomllib

    import torch

    site, source, project = tmp_path / "site", snippet(PLUGINS, "family"), tmp_path / "zoo-mobilenet"
    assert len(source.splitlines()) <= 35
    assert command_line("plugins", "new", "mobilenet", "-o", project).returncode == 0
    documented = tomllib.loads(snippet(PLUGINS, "entry point"))["project"]["entry-points"]
    assert tomllib.loads((project / "pyproject.toml").read_text())["project"]["entry-points"] == documented
    network = random_mobilenet(tmp_path / "weights.pth")
    row, published = snippet(PLUGINS, "row"), "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    assert published in row
    row = re.sub(
        r"sha256: [0-9a-f]{64}", f"sha256: {digest}", row.replace(published, (tmp_path / "weights.pth").as_uri())
    )
    (project / "zoo_mobilenet/__init__.py").write_text(source)
    (project / "zoo_mobilenet/registry.yaml").write_text(row)
    pip_install(project, site)
    environment = {"PYTHONPATH": str(site), "ZOO_DEVICE": "cpu"}
    name, data, out = "mobilenet_v2.tv_in1k", write_images(tmp_path / "data", 5), tmp_path / "model"
    for arguments in (
        ("plugins", "check", "mobilenet"),
        ("finetune", name, data, "-o", out, "--epochs", 5),
        ("run", out, data / "blue"),
    ):
        done = command_line(*arguments, **environment)
        assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5
    monkeypatch.syspath_prepend(str(site))
    house = Zoo()
    pixels = torch.randn(2, 3, 224, 224)
    family = house.plugins.backbone("mobilenet")(house.entry(name), house.pull(name))
    features = family.reference({"pixels": pixels.numpy()})["features"]
    assert features.shape == (2, house.entry(name).dim)
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(features), network(pixels))


def test_every_check_stands_in_its_table() -> None:
    from zoo.testing.conformance import STEPS

    table = PLUGINS.read_text().partition("## The check")[2].partition("## Shelves")[0]
    rows = re.findall(r"^\| ([\w -]+?)(?: ([*†]))? \|", table, re.MULTILINE)
    marks = {None: "", "torch": "*", "words": "†"}
    assert rows[1:] == [(step.name, marks[step.only]) for step in STEPS]


def test_the_source_of_the_tutorial(tmp_path: Path, shelf_file: Path) -> None:
    """The source pulls through the command line, resumes a partial file, and names a missing one."""
    site, share = tmp_path / "site", tmp_path / "share"
    site.mkdir()
    share.mkdir()
    points = re.search(
        r"^```toml\n(\[project\.entry-points\.\"zoo\.sources\"\]\n.*?)^```$", PLUGINS.read_text(), re.M | re.S
    )
    assert points is not None
    install(site, "zoo_share", snippet(PLUGINS, "source"), points[1])
    shutil.copy(shelf_file.parent / "lite/lite0.pth", share)
    registry = tmp_path / "registry.json"
    registry.write_text(shelf_file.read_text().replace((shelf_file.parent / "lite").as_uri(), "share:/"))
    environment = {
        "PYTHONPATH": str(site),
        "ZOO_REGISTRY": str(registry),
        "COMPANY_SHARE": str(share),
        "ZOO_OFFLINE": "1",
    }
    done = command_line("pull", "tiny-lite", **environment)
    assert done.returncode == 0, done.stderr
    missing = command_line(
        "pull", "tiny-lite", **{**environment, "COMPANY_SHARE": "/nowhere", "ZOO_HOME": str(tmp_path / "other")}
    )
    assert missing.returncode == 4
    assert "set COMPANY_SHARE" in missing.stderr
    script = (
        "from pathlib import Path; from zoo.plugin.manager import Plugins; from zoo.source import Want; "
        "from zoo.progress import SILENT; partial = Path('partial'); partial.write_bytes(b'held'); "
        "Plugins().source('share').fetch([Want(url='share://words', partial=partial, size=10)], SILENT); "
        "print(partial.read_bytes())"
    )
    (share / "words").write_bytes(b"HELD and much more than ten bytes")
    assert run_python(script, tmp_path, **environment).strip() == "b'held and mu'"
