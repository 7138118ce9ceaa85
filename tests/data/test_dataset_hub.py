"""hf://datasets/... from the loopback Hub, in child processes, because huggingface_hub reads its environment once."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.hub import TOKEN, FakeHub, HubRepo
from tests.kit.items import CLASSES, image_bytes, write_parquet

OLD, NEW = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
URL = "hf://datasets/org/pets/data/train-00000-of-00001.parquet"
LOAD = """
import json, sys
from zoo import ZooError
from zoo.data.dataset import load
from tests.kit.items import IMAGE, TEXT
kind, sources, options = json.loads(sys.argv[1])
answers = []
for source in sources:
    try:
        data = load(source, {"image": IMAGE, "text": TEXT}[kind], **options)
        items = [[type(e.item).__name__, e.label, e.name] for e in data.examples]
        answers.append({"items": items, "source": data.source, "digest": data.digest})
    except ZooError as error:
        answers.append({"type": type(error).__name__, "message": error.message, "hint": error.hint})
print(json.dumps(answers))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A data set of two commits: images in Parquet by LFS, and two small tables."""
    parquet = write_parquet(
        tmp_path / "t.parquet",
        {
            "image": [{"bytes": image_bytes(1), "path": "a.png"}, {"bytes": image_bytes(2), "path": "b.png"}],
            "label": [0, 1],
        },
        CLASSES,
    ).read_bytes()
    path = URL.partition("pets/")[2]
    files = {path: parquet, "t.csv": b"text,label\nx,a\ny,b\n", "paths.csv": b"image,label\na.png,a\n"}
    with FakeHub() as running:
        running.add("datasets/org/pets", OLD, HubRepo({"t.csv": b"text,label\nold,a\n"}), branches=("v1",))
        running.add("datasets/org/pets", NEW, HubRepo(files, lfs=frozenset({path})), branches=("main",))
        running.add("datasets/org/shut", NEW, HubRepo({"t.csv": files["t.csv"]}, is_gated=True))
        yield running


def load(
    hub: FakeHub | None, kind: str, *sources: str, environment: dict[str, str] | None = None, **options: Any
) -> Any:
    """The JSON of a process that loads each of `sources`; without `hub` the Hub's address is one without a server."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps([kind, sources, options])],
        env={**os.environ, "HF_ENDPOINT": hub.origin if hub else "http://127.0.0.1:9", **(environment or {})},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_images_of_the_hub_come_once_and_stay_in_its_cache(hub: FakeHub, tmp_path: Path) -> None:
    # A Path turns two slashes into one.
    found, again = load(hub, "image", URL, str(Path(URL)))
    name = URL.rpartition("/")[2]
    assert found["items"] == again["items"] == [["bytes", "cat", f"{name}:1"], ["bytes", "dog", f"{name}:2"]]
    assert found["source"] == URL
    cached = list((tmp_path / "hf-home").rglob("*.parquet"))
    assert [NEW in str(path) for path in cached] == [True]
    # Cached data need no network, whether zoo's variable or huggingface_hub's says offline.
    assert load(None, "image", URL, offline=True) == [found]
    assert load(None, "image", URL, environment={"HF_HUB_OFFLINE": "1"}) == [found]
    assert len([seen for seen in hub.cdn.requests if seen.method == "GET"]) == 1


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: FakeHub) -> None:
    revisions = (OLD, "main", NEW, "v1")
    found = load(hub, "text", *(f"hf://datasets/org/pets@{revision}/t.csv" for revision in revisions))
    assert [len(each["items"]) for each in found] == [1, 2, 2, 1]
    # Cached files of a commit are not requested again.
    requested = {seen.path for seen in hub.requests}
    assert requested >= {f"/datasets/org/pets/resolve/{revision}/t.csv" for revision in ("main", "v1", OLD)}


REFUSALS = {
    "hf://datasets/org/gone/t.csv": ("NotFoundError", "no such repository on the Hub", "datasets/org/gone/tree/main"),
    "hf://datasets/org/pets/gone.csv": ("NotFoundError", "no such file on the Hub", "datasets/org/pets/tree/main"),
    "hf://datasets/org/pets@v9/t.csv": ("NotFoundError", "no such commit on the Hub", "datasets/org/pets"),
    "hf://datasets/org/shut/t.csv": ("AccessError", "denies access", "HF_TOKEN"),
    "hf://datasets/pets/t.csv": (
        "UsageError",
        "does not name a file of a data set on the Hub",
        "hf://datasets/ORG/NAME",
    ),
    "hf://org/pets/t.csv": ("UsageError", "does not name a file of a data set on the Hub", "hf://datasets/ORG/NAME"),
    "hf://datasets/org/..pets--x/t.csv": ("NotFoundError", "not a repository name", "hf://datasets/ORG/NAME"),
    "hf://datasets/org/pets/t.txt": ("DataError", "is not a table; this model reads text", ".parquet"),
    "hf://datasets/org/pets": ("DataError", "is not a table; this model reads text", ".parquet"),
}


def test_what_the_hub_does_not_give(hub: FakeHub) -> None:
    found = load(hub, "text", *REFUSALS)
    for (source, (kind, message, hint)), error in zip(REFUSALS.items(), found, strict=True):
        assert (error["type"], source) == (kind, source)
        assert source in error["message"]
        assert message in error["message"]
        assert hint in error["hint"]
        assert "\n" not in error["message"]


def test_a_token_opens_what_is_gated(hub: FakeHub) -> None:
    [found] = load(hub, "text", "hf://datasets/org/shut/t.csv", environment={"HF_TOKEN": TOKEN})
    assert len(found["items"]) == 2


def test_what_is_not_cached_cannot_be_read_offline(hub: FakeHub) -> None:
    [found] = load(hub, "image", URL, offline=True)
    assert (found["type"], found["hint"]) == ("OfflineError", "unset ZOO_OFFLINE")
    [found] = load(hub, "image", URL, environment={"HF_HUB_OFFLINE": "1"})
    assert (found["type"], found["hint"]) == ("OfflineError", "unset HF_HUB_OFFLINE")
    assert hub.requests == []


def test_a_table_of_the_hub_holds_its_images(hub: FakeHub) -> None:
    [found] = load(hub, "image", "hf://datasets/org/pets/paths.csv")
    assert found["type"] == "DataError"
    assert "paths.csv:2 names the image 'a.png', which is not in the table" in found["message"]


def test_the_command_line_takes_the_hubs_names(hub: FakeHub, shelf: Path, tmp_path: Path) -> None:
    """The whole chain on a data set of the Hub; a table with one class is refused before anything is computed."""
    words = ("my card", "a bill", "the code", "login", "refund", "parcel")
    rows = "".join(f"{word} {label},{label}\n" for label in ("a", "b") for word in words)
    one = "".join(f"{word},a\n" for word in words)
    content = {"t.csv": f"text,label\n{rows}".encode(), "one.csv": f"text,label\n{one}".encode()}
    hub.add("datasets/org/words", NEW, HubRepo(content))
    source, out = "hf://datasets/org/words/t.csv", str(tmp_path / "out")

    def zoo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "zoo_cli", *arguments],
            env={**os.environ, "HF_ENDPOINT": hub.origin, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    offline = zoo("finetune", "tiny-bert", source, "-o", out, ZOO_OFFLINE="1")
    assert offline.returncode == 4, offline.stderr
    assert f"error: {source} is not in the Hub client's cache, and zoo is offline" in offline.stderr
    assert offline.stderr.splitlines()[-1] == "hint: unset ZOO_OFFLINE"
    assert hub.requests == []
    bad = zoo("finetune", "tiny-bert", source.replace("t.csv", "one.csv"), "-o", out)
    assert bad.returncode == 2
    assert "one.csv has only the class 'a'" in bad.stderr
    done = zoo("finetune", "tiny-bert", source, "-o", out, "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert f"zoo evaluate {out} {source} --held-out" in done.stderr
    judged = zoo("evaluate", out, source, "--held-out", ZOO_OFFLINE="1")
    assert judged.returncode == 0, judged.stderr
    assert "t.csv: " not in judged.stderr
