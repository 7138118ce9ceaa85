"""The sources https, http and file against scripted servers and real files."""

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from email.utils import formatdate
from importlib import import_module
from pathlib import Path

import pytest
from zoo_plugins.sources.file import FileSource
from zoo_plugins.sources.http import HttpSource, HttpsSource

from tests.kit.pulls import DATA, Counting, QuickHttp, want
from tests.kit.servers import (
    Answer,
    Loopback,
    cut,
    dripping,
    endless,
    held_back,
    page,
    range_ignored,
    redirect,
    status,
    whole,
    wrong_range,
)
from zoo.errors import AccessError, NetworkError, ZooError
from zoo.progress import SILENT

HALF = len(DATA) // 2


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    folder = tmp_path / "partial"
    folder.mkdir()
    return folder / "data"


def fetch(url: str, partial: Path, size: int | None = len(DATA), source: HttpsSource | None = None) -> None:
    (source or QuickHttp()).fetch([want(url, partial, size)], SILENT)


def test_every_entry_point_names_a_module_that_gives_its_scheme() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    points = project["project"]["entry-points"]["zoo.sources"]
    assert set(points) == {"hf", "https", "http", "pypi", "file", "package"}
    for scheme, module in points.items():
        assert scheme in [source.scheme for source in import_module(module).zoo_register_sources()]


@pytest.mark.parametrize(
    ("answers", "ranges"),
    [
        ([whole(DATA)], [None]),
        ([cut(DATA, 0), whole(DATA)], [None, None]),
        ([cut(DATA, 1), whole(DATA)], [None, "bytes=1-"]),
        ([cut(DATA, HALF), cut(DATA, HALF + 9), whole(DATA)], [None, f"bytes={HALF}-", f"bytes={HALF + 9}-"]),
        ([cut(DATA, len(DATA) - 1), whole(DATA)], [None, f"bytes={len(DATA) - 1}-"]),
        ([cut(DATA, HALF, with_length=False), whole(DATA)], [None, f"bytes={HALF}-"]),
        ([cut(DATA, HALF), range_ignored(DATA)], [None, f"bytes={HALF}-"]),
        ([cut(DATA, HALF), wrong_range(DATA), whole(DATA)], [None, f"bytes={HALF}-", None]),
        ([cut(DATA, HALF), status(416), whole(DATA)], [None, f"bytes={HALF}-", None]),
        ([status(500), status(502), status(503), status(408), whole(DATA)], [None] * 5),
    ],
    ids=["full", "cut-0", "cut-1", "cut-twice", "cut-last", "no-length", "range-ignored", "wrong-range", "416", "5xx"],
)
def test_http_gets_there_whatever_the_server_does(
    server: Loopback, partial: Path, answers: list[Answer], ranges: list[str | None]
) -> None:
    counting = Counting()
    QuickHttp().fetch([want(server.script("/w.bin", *answers), partial)], counting)
    assert partial.read_bytes() == DATA
    assert server.ranges("/w.bin") == ranges
    assert counting.total == len(DATA)
    assert {seen.headers["Accept-Encoding"] for seen in server.requests} == {"identity"}


def test_http_gives_up_after_five_tries_and_keeps_the_bytes(server: Loopback, partial: Path) -> None:
    url = server.script("/w.bin", cut(DATA, HALF), status(500))
    with pytest.raises(NetworkError, match="5 tries: status 500") as caught:
        fetch(url, partial)
    assert len(server.requests) == 5
    assert partial.stat().st_size == HALF
    # The host is at fault, not the file: the pull requests no other file from it.
    assert caught.value.url == server.origin + "/"


def test_http_refused_connection_is_a_network_error(partial: Path) -> None:
    with Loopback() as gone:
        url = gone.origin + "/w.bin"
    with pytest.raises(NetworkError, match="ConnectError"):
        fetch(url, partial)


def test_if_range_turns_a_changed_file_into_a_fresh_start(server: Loopback, partial: Path) -> None:
    other = bytes(reversed(DATA))
    url = server.script("/w.bin", cut(DATA, HALF, etag='"v1"'), whole(other, etag='"v2"'))
    fetch(url, partial)
    assert partial.read_bytes() == other
    assert server.requests[1].headers["If-Range"] == '"v1"'
    assert server.ranges("/w.bin") == [None, f"bytes={HALF}-"]


def test_a_weak_or_foreign_etag_is_no_validator(server: Loopback, partial: Path) -> None:
    weak = server.script("/weak", cut(DATA, 10, etag='W/"v1"'), cut(DATA, 20, etag='"v1"'), status(404))
    with pytest.raises(NetworkError):
        fetch(weak, partial)
    assert "If-Range" not in server.requests[1].headers
    fetch(server.script("/mirror", whole(DATA, etag='"m"')), partial)
    assert "If-Range" not in server.requests[-1].headers
    assert server.ranges("/mirror") == ["bytes=20-"]
    assert partial.read_bytes() == DATA


@pytest.mark.parametrize("damaged", [b"", b"[]", b'{"url": 1}', b'"\xff"'])
def test_a_damaged_etag_is_not_used(server: Loopback, partial: Path, damaged: bytes) -> None:
    partial.write_bytes(DATA[:10])
    partial.with_name(partial.name + ".etag").write_bytes(damaged)
    fetch(server.script("/w.bin", whole(DATA)), partial)
    assert "If-Range" not in server.requests[0].headers
    assert server.ranges("/w.bin") == ["bytes=10-"]
    assert partial.read_bytes() == DATA


def test_a_partial_longer_than_the_file_is_thrown_away_and_a_whole_one_needs_no_request(
    server: Loopback, partial: Path
) -> None:
    url = server.script("/w.bin", whole(DATA))
    partial.write_bytes(DATA + b"!")
    fetch(url, partial)
    assert partial.read_bytes() == DATA
    fetch(url, partial)
    assert server.ranges("/w.bin") == [None]


def test_416_at_the_end_of_a_file_of_unknown_size_means_that_nothing_is_missing(
    server: Loopback, partial: Path
) -> None:
    partial.write_bytes(DATA)
    fetch(server.script("/w.bin", whole(DATA)), partial, None)
    assert partial.read_bytes() == DATA
    assert server.ranges("/w.bin") == [f"bytes={len(DATA)}-"]


def test_http_stops_one_byte_past_the_size(server: Loopback, partial: Path) -> None:
    for answer in (endless(b"x" * 100_000), whole(b"x" * 5_000_000)):
        partial.unlink(missing_ok=True)
        fetch(server.script("/w.bin", answer), partial, 1000)
        assert partial.stat().st_size == 1001


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("0", 0.0), ("1", 1.0), ("99999", 60.0), ("nonsense", None), (formatdate(0, usegmt=True), 0.0)],
)
def test_retry_after_is_obeyed_up_to_a_minute(
    server: Loopback, partial: Path, monkeypatch: pytest.MonkeyPatch, header: str, seconds: float | None
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    fetch(server.script("/w.bin", status(429, {"Retry-After": header}), whole(DATA)), partial)
    assert partial.read_bytes() == DATA
    assert len(waits) == 1
    assert waits[0] == seconds or (seconds is None and 0 < waits[0] < 0.1)


def test_back_off_doubles_with_jitter(server: Loopback, partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(NetworkError):
        fetch(server.script("/w.bin", status(503)), partial, source=HttpSource())
    assert [0.5 * base <= wait <= 1.5 * base for base, wait in zip((0.5, 1, 2, 4), waits, strict=True)] == [True] * 4


@pytest.mark.parametrize(
    ("code", "error", "hint"),
    [
        (401, AccessError, "it needs an account"),
        (403, AccessError, "it needs an account"),
        (404, NetworkError, "try another source"),
        (407, AccessError, "name and password of your proxy"),
    ],
)
def test_a_refusal_is_not_tried_again(
    server: Loopback, partial: Path, code: int, error: type[ZooError], hint: str
) -> None:
    with pytest.raises(error, match=str(code)) as caught:
        fetch(server.script("/w.bin", status(code)), partial)
    assert hint in str(caught.value.hint)
    assert len(server.requests) == 1


def test_redirects_are_followed_up_to_five(server: Loopback, partial: Path) -> None:
    server.script("/w.bin", whole(DATA))
    for hop in range(6):
        server.script(f"/{hop}", redirect(f"/{hop - 1}" if hop else "w.bin"))
    fetch(server.origin + "/4", partial)
    assert partial.read_bytes() == DATA
    partial.unlink()
    with pytest.raises(NetworkError, match="more than 5 redirects"):
        fetch(server.origin + "/5", partial)
    started = time.monotonic()
    with pytest.raises(NetworkError, match="more than 5 redirects"):
        fetch(server.script("/loop", redirect("/loop")), partial)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("url", "location", "followed"),
    [
        ("https://1.1.1.1/a", "https://8.8.8.8/b", True),
        ("https://1.1.1.1/a", "/b", True),
        ("https://10.0.0.1/a", "https://10.0.0.2/b", True),
        ("http://127.0.0.1/a", "https://8.8.8.8/b", True),
        ("https://1.1.1.1/a", "http://1.1.1.1/b", False),
        ("https://1.1.1.1/a", "file:///etc/passwd", False),
        ("https://1.1.1.1/a", "https://127.0.0.1/b", False),
        ("https://1.1.1.1/a", "https://localhost/b", False),
        ("https://1.1.1.1/a", "https://[::1]/b", False),
        ("https://1.1.1.1/a", "https://10.0.0.1/b", False),
        ("https://1.1.1.1/a", "https://169.254.169.254/latest", False),
        ("https://1.1.1.1/a", "https://[::1", False),
    ],
)
def test_where_a_redirect_may_lead(url: str, location: str, followed: bool) -> None:
    source = HttpSource() if url.startswith("http:") else HttpsSource()
    if followed:
        assert source.redirected(url, location).endswith("/b")
    else:
        with pytest.raises(NetworkError, match="redirects to"):
            source.redirected(url, location)


def test_plain_http_is_for_loopback_alone(server: Loopback, partial: Path) -> None:
    for url in ("http://example.org/w.bin", server.script("/w.bin", redirect("http://8.8.8.8/w.bin"))):
        with pytest.raises(NetworkError, match="plain http is refused for") as caught:
            fetch(url, partial)
        assert caught.value.hint == "use https"


def test_an_html_page_is_named_in_the_hint(server: Loopback, partial: Path) -> None:
    with pytest.raises(NetworkError, match="HTML page") as caught:
        fetch(server.script("/w.bin", page()), partial)
    assert "text/html" in str(caught.value.hint)
    assert len(server.requests) == 1
    compressed = server.script("/z.bin", status(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"))
    with pytest.raises(NetworkError, match="sent gzip content"):
        fetch(compressed, partial)


def test_silence_and_a_trickle_are_both_given_up_and_resumed(server: Loopback, partial: Path) -> None:
    class Impatient(QuickHttp):
        timeout = 0.2
        patience = 0.2

    fetch(server.script("/silent", held_back(DATA, HALF), whole(DATA)), partial, source=Impatient())
    assert partial.read_bytes() == DATA
    assert server.ranges("/silent") == [None, f"bytes={HALF}-"]
    partial.unlink()
    fetch(server.script("/slow", dripping(DATA, 0.01), whole(DATA)), partial, source=Impatient())
    assert partial.read_bytes() == DATA
    first, second = server.ranges("/slow")
    assert first is None
    assert 5 < int(str(second).removeprefix("bytes=").removesuffix("-")) < 100


def test_a_certificate_that_is_not_trusted_is_not_tried_again(partial: Path, tmp_path: Path) -> None:
    """Our client with a TLS server whose certificate is self-signed."""
    import ssl

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the command openssl, to make a certificate")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
    made = subprocess.run(command, capture_output=True)
    assert made.returncode == 0, made.stderr.decode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Loopback() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.script("/w.bin", whole(DATA)).replace("http://127.0.0.1", "https://localhost")
        with pytest.raises(NetworkError, match="certificate is not trusted") as caught:
            HttpsSource().fetch([want(url, partial)], SILENT)
    assert "SSL_CERT_FILE" in str(caught.value.hint)


def test_file_copies_regular_files_and_nothing_else(tmp_path: Path, partial: Path) -> None:
    path = tmp_path / "a b%.bin"
    path.write_bytes(DATA)
    partial.write_bytes(b"old bytes")
    FileSource().fetch([want(path.as_uri(), partial)], SILENT)
    assert partial.read_bytes() == DATA
    FileSource().fetch([want(path.as_uri(), partial, 10)], SILENT)
    assert partial.stat().st_size == 11
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "gone", "."):
        with pytest.raises(NetworkError, match=r"not a regular file|cannot be read"):
            FileSource().fetch([want((tmp_path / name).as_uri(), partial)], SILENT)
    with pytest.raises(NetworkError, match="this machine"):
        FileSource().fetch([want("file://elsewhere/w.bin", partial)], SILENT)


def test_loading_a_source_costs_no_heavy_import() -> None:
    script = "import sys, zoo.store.store, zoo.store.lock, zoo.store.pull\n"
    script += "import zoo_plugins.sources.file, zoo_plugins.sources.pypi\n"
    script += "heavy = {'numpy', 'torch', 'onnxruntime', 'huggingface_hub', 'httpx2', 'transformers'}\n"
    script += "import json; print(json.dumps(sorted(heavy & set(sys.modules))))"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert json.loads(child.stdout) == []
