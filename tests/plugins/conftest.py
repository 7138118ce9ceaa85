"""The loopback Hub for tests of bridges."""

from collections.abc import Iterator

import pytest

from tests.kit.hub import FakeHub, hub_on_loopback


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running Hub for this process and its children."""
    with hub_on_loopback(monkeypatch) as server:
        yield server
