"""A small Hugging Face Hub on loopback for huggingface_hub 2.x; HF_ENDPOINT is its `origin`.

It answers: the files of a repository, or of a data set (`datasets/ORG/NAME`), by commit or branch (HEAD and GET, with
the headers of a commit, LFS files by a redirect to another host), the facts of a model (`model_info`, with `blobs` and
`expand`), its listing (`list_repo_tree`, recursive or a folder; no pages) and the facts of some paths
(`get_paths_info`). Routes and field names: https://huggingface.co/.well-known/openapi.json and
huggingface_hub/hf_api.py.
"""

import hashlib
import json
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

from tests.kit.servers import Answer, Data, Handler, Loopback, status, whole

TOKEN = "hf_of_the_test"
#: Fields that model_info always has, whether or not `expand` asks for them.
ALWAYS = ("_id", "id")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubRepo:
    """One repository at one commit: paths to their bytes; those in `lfs` are served from another host by redirect."""

    files: Mapping[str, Data]
    lfs: frozenset[str] = frozenset()
    is_gated: bool = False
    #: The sha256 that the Hub announces for an LFS file, if that is not the real one.
    announced: dict[str, str] = field(default_factory=dict)

    @cached_property
    def digests(self) -> dict[str, str]:
        """sha256 of each LFS file, as announced."""
        truth = {path: hashlib.sha256(self.files[path]).hexdigest() for path in self.lfs}
        return truth | self.announced

    @cached_property
    def oids(self) -> dict[str, str]:
        """Each file's git object id: for an LFS file that of its pointer, as on the Hub."""
        return {path: _git_id("blob", self._stored(path)) for path in self.files}

    def pointer(self, path: str) -> bytes:
        """The pointer that git stores for an LFS file."""
        size, digest = len(self.files[path]), self.digests[path]
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n".encode()

    def _stored(self, path: str) -> Data:
        return self.pointer(path) if path in self.lfs else self.files[path]

    def folders(self) -> set[str]:
        """Every folder that a file lies in, at any depth."""
        parts = [path.split("/")[:-1] for path in self.files]
        return {"/".join(part[: depth + 1]) for part in parts for depth in range(len(part))}

    def row(self, path: str) -> dict[str, Any]:
        """A file or folder as listings show it."""
        if path not in self.files:
            inside = "\n".join(sorted(name for name in self.files if name.startswith(f"{path}/")))
            return {"type": "directory", "path": path, "size": 0, "oid": _git_id("tree", inside.encode())}
        row: dict[str, Any] = {"type": "file", "path": path, "size": len(self.files[path]), "oid": self.oids[path]}
        if path in self.lfs:
            row["lfs"] = {"oid": self.digests[path], "size": row["size"], "pointerSize": len(self.pointer(path))}
        return row

    def card(self) -> dict[str, Any]:
        """The YAML head of README.md, which the Hub calls card data."""
        match = re.match(r"---\n(.*?)\n---\n", bytes(self.files.get("README.md", b"")).decode(), re.DOTALL)
        card: dict[str, Any] = yaml.safe_load(match[1]) if match else {}
        return card

    def parameters(self) -> Counter[str]:
        """How many numbers of each type the safetensors files hold, by the Hub's names of types."""
        count: Counter[str] = Counter()
        for path, data in self.files.items():
            if path.endswith(".safetensors") and len(data) > 8:
                (length,) = struct.unpack("<Q", data[:8])
                header = json.loads(data[8 : 8 + length])
                for name, tensor in header.items():
                    if name != "__metadata__":
                        count[tensor["dtype"]] += prod(tensor["shape"])
        return count


class FakeHub(Loopback):
    """The Hub and, beside it, the other host that serves large files (`cdn`)."""

    def __init__(self) -> None:
        super().__init__()
        self.repos: dict[tuple[str, str], HubRepo] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.cdn = Loopback()

    def __enter__(self) -> "FakeHub":
        super().__enter__()
        self.cdn.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.cdn.__exit__(*details)
        super().__exit__(*details)

    def add(self, repo: str, commit: str, content: HubRepo, *, branches: Sequence[str] = ("main",)) -> None:
        """Serve `content` as the repository's `commit`; each of `branches` points to it from now on.

        A data set's name is `datasets/ORG/NAME`.
        """
        self.repos[repo, commit] = content
        self.branches |= {(repo, branch): commit for branch in branches}
        for path, digest in content.digests.items():
            self.cdn.script(f"/lfs/{digest}", whole(content.files[path], etag=f'"{digest}"'))

    def answer(self, path: str) -> Answer:
        url = urlsplit(path)
        query, route = parse_qs(url.query), unquote(url.path)
        if match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", route):
            return self._at(match[1], match[2], lambda repo, commit: self._file(repo, commit, match[3]))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", route):
            return self._at(match[1], match[2] or "main", lambda repo, commit: _info(repo, match[1], commit, query))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", route):
            is_recursive = query.get("recursive") in (["true"], ["True"])
            return self._at(match[1], match[2], lambda repo, _: _tree(repo, match[3] or "", is_recursive))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", route):
            return self._at(match[1], match[2], lambda repo, _: _paths_info(repo))
        return status(404)

    def _at(self, name: str, revision: str, then: Callable[[HubRepo, str], Answer]) -> Answer:
        """The answer of `then` for the repository at a commit or branch, or the Hub's error for a missing one."""
        commit = self.branches.get((name, revision), revision)
        if (name, commit) in self.repos:
            return then(self.repos[name, commit], commit)
        is_known = any(repo == name for repo, _ in self.repos)
        return status(404, {"X-Error-Code": "RevisionNotFound" if is_known else "RepoNotFound"})

    def _file(self, repo: HubRepo, commit: str, path: str) -> Answer:
        answer = self._open_file(repo, commit, path)
        refusal = status(403, {"X-Error-Code": "GatedRepo"})
        return _unless_token(refusal, answer) if repo.is_gated else answer

    def _open_file(self, repo: HubRepo, commit: str, path: str) -> Answer:
        if path not in repo.files:
            return status(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if path not in repo.lfs:
            return whole(repo.files[path], etag=f'"{repo.oids[path]}"', headers={"X-Repo-Commit": commit})
        size, digest = len(repo.files[path]), repo.digests[path]
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(size), "X-Repo-Commit": commit}
        return status(302, linked | {"Location": f"{self.cdn.origin}/lfs/{digest}"})


@contextmanager
def hub_on_loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running Hub for this process and its children; the client's address, read at import, is replaced."""
    from huggingface_hub import constants

    with FakeHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.origin)
        monkeypatch.setattr(constants, "ENDPOINT", server.origin)
        template = server.origin + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def _info(repo: HubRepo, name: str, commit: str, query: Mapping[str, list[str]]) -> Answer:
    card, parameters = repo.card(), repo.parameters()
    config = json.loads(bytes(repo.files.get("config.json", b"{}")))
    library = card.get("library_name") or ("transformers" if "model_type" in config else None)
    tags = [*([library] if library else []), *card.get("tags", [])]
    tags += [f"license:{card['license']}"] if "license" in card else []
    with_blobs = query.get("blobs") in (["true"], ["True"])
    facts = {
        "_id": _git_id("tree", name.encode())[:24],
        "id": name,
        "modelId": name,
        "author": name.partition("/")[0],
        "sha": commit,
        "private": False,
        "disabled": False,
        "gated": "manual" if repo.is_gated else False,
        "downloads": 0,
        "likes": 0,
        "lastModified": "2024-02-10T23:38:21.000Z",
        "createdAt": "2023-04-05T18:02:50.000Z",
        "tags": tags,
        "cardData": card,
        "config": {key: config[key] for key in ("architectures", "model_type") if key in config},
        "siblings": [_sibling(repo, path, with_blobs) for path in sorted(repo.files)],
    }
    facts |= {"library_name": library} if library else {}
    facts |= {"pipeline_tag": card["pipeline_tag"]} if "pipeline_tag" in card else {}
    facts |= {"safetensors": {"parameters": parameters, "total": parameters.total()}} if parameters else {}
    wanted = query.get("expand")
    return _json(facts if wanted is None else {key: facts[key] for key in (*ALWAYS, *wanted) if key in facts})


def _sibling(repo: HubRepo, path: str, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    row = repo.row(path)
    sibling = {"rfilename": path, "blobId": row["oid"], "size": row["size"]}
    if "lfs" in row:
        sibling["lfs"] = {"sha256": row["lfs"]["oid"], "size": row["size"], "pointerSize": row["lfs"]["pointerSize"]}
    return sibling


def _tree(repo: HubRepo, folder: str, is_recursive: bool) -> Answer:
    if folder and folder not in repo.folders():
        return status(404, {"X-Error-Code": "EntryNotFound"})
    return _json([repo.row(path) for path in sorted(_inside(repo, folder, is_recursive))])


def _inside(repo: HubRepo, folder: str, is_recursive: bool) -> Iterator[str]:
    start = f"{folder}/" if folder else ""
    for path in (*repo.files, *repo.folders()):
        if path.startswith(start) and (is_recursive or "/" not in path[len(start) :]):
            yield path


def _paths_info(repo: HubRepo) -> Answer:
    def answer(handler: Handler) -> None:
        form = parse_qs(handler.rfile.read(int(handler.headers["Content-Length"])).decode())
        _json([repo.row(path) for path in form["paths"] if path in repo.files or path in repo.folders()])(handler)

    return answer


def _json(value: object) -> Answer:
    return status(200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(value).encode())


def _git_id(kind: str, data: Data) -> str:
    digest = hashlib.sha1(f"{kind} {len(data)}\0".encode(), usedforsecurity=False)
    digest.update(data)
    return digest.hexdigest()


def _unless_token(refusal: Answer, otherwise: Answer) -> Answer:
    def answer(handler: Handler) -> None:
        has_token = handler.headers.get("Authorization") == f"Bearer {TOKEN}"
        (otherwise if has_token else refusal)(handler)

    return answer
