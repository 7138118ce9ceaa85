"""What every test gets: a ZOO_HOME of its own, a clean environment, no socket beyond loopback, no package index."""

import os
from pathlib import Path

import pytest

#: Set by a developer's shell, never by a test: they would change what the code under test does.
FOREIGN = (
    "ZOO_REGISTRY", "ZOO_OFFLINE", "ZOO_DEVICE", "ZOO_PLUGINS", "ZOO_DEBUG",
    "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HOME",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests whose need is not met, with the reason that the report shows."""
    if os.environ.get("ZOO_TEST_NETWORK") != "1":
        skip = pytest.mark.skip(reason="needs the package index: set ZOO_TEST_NETWORK=1")
        for item in items:
            if "network" in item.keywords:
                item.add_marker(skip)
    if any("gpu" in item.keywords for item in items):
        from zoo.runtime import cuda_problem

        problem = cuda_problem()
        if problem is not None:
            skip = pytest.mark.skip(reason=f"needs a CUDA device: {problem}")
            for item in items:
                if "gpu" in item.keywords:
                    item.add_marker(skip)


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
    if "network" not in request.keywords:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
    return home
