"""The disk limit of caches, the order of their removal, and caches that other processes use."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.pulls import HOLDER
from zoo import UsageError
from zoo.store import caches


def cache(folder: Path, key: str, size: int, used: int) -> None:
    """A cache of two files that was last used `used` seconds after 1970."""
    (folder / f"{key}.activations").mkdir(parents=True)
    for path, part in ((folder / f"{key}.features", size // 2), (folder / f"{key}.activations/data", size - size // 2)):
        path.write_bytes(bytes(part))
        os.utime(path, (used, used))


def test_those_that_were_not_used_for_longest_go_first(tmp_path: Path) -> None:
    for key, used in (("b", 200), ("a", 100), ("c", 300)):
        cache(tmp_path, key, 1000, used)
    assert [each.key for each in caches.caches(tmp_path)] == ["a", "b", "c"]
    assert caches.trim(tmp_path, 3000) == 0
    with caches.in_use(tmp_path, "a"):
        # The cache is in use here, and from now on the newest.
        assert caches.trim(tmp_path, 0) == 2000
    assert [each.key for each in caches.caches(tmp_path)] == ["a"]
    assert caches.trim(tmp_path, 0) == 1000
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_uses_stays(tmp_path: Path) -> None:
    for key in ("used", "free"):
        cache(tmp_path, key, 1000, 100)
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), "used"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    assert caches.trim(tmp_path, 0) == 1000
    assert [each.key for each in caches.caches(tmp_path)] == ["used"]
    child.kill()
    child.communicate()
    # An ended process, even a killed one, uses no cache.
    assert caches.trim(tmp_path, 0) == 1000


def test_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifth = shutil.disk_usage(tmp_path).free // 5
    assert caches.limit(tmp_path / "not" / "there") == pytest.approx(min(4e9, fifth), rel=0.05)
    for text, wanted in (("10MB", 10**7), ("1.5 kb", 1500), ("77", 77), ("", caches.LIMIT)):
        monkeypatch.setenv("ZOO_CACHE_LIMIT", text)
        assert caches.chosen_limit() == wanted
    monkeypatch.setenv("ZOO_CACHE_LIMIT", "900TB")
    assert caches.limit(tmp_path) == pytest.approx(fifth, rel=0.05)
    for text in ("much", "-1", "4GiB"):
        monkeypatch.setenv("ZOO_CACHE_LIMIT", text)
        with pytest.raises(UsageError, match="ZOO_CACHE_LIMIT"):
            caches.limit(tmp_path)
