"""`https://` (and `http://` on loopback): downloads that resume by range requests and are retried with back-off."""

import ipaddress
import random
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO

import httpx2
import msgspec

from zoo.errors import AccessError, NetworkError
from zoo.hookspecs import hookimpl
from zoo.progress import Bar, Progress
from zoo.source import Source, Want

CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
MAX_REDIRECTS = 5
#: Status codes, besides every 5xx, that may change when the request is repeated.
TRANSIENT = frozenset({408, 425, 429})


class _TryAgainError(Exception):
    """Raised when another try may succeed; `after` are the seconds that the server asks to wait."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class HttpsSource(Source):
    """Files on web servers. Redirects never leave https, and never lead from the internet into a private network."""

    scheme = "https"
    #: Seconds without a byte before a connection is given up.
    timeout = 30.0
    tries = 5
    #: Seconds before the second try. The time doubles with each further try; a random factor of 0.5 to 1.5 is applied.
    backoff = 0.5
    longest_wait = 60.0
    #: A connection with fewer bytes per second than this, on average over `patience` seconds, is given up too.
    slowest = 1024
    patience = 60.0

    def fetch(self, wants: Sequence[Want], progress: Progress) -> None:
        """Fetch every file in turn; bytes that its partial already holds are not fetched again."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "backbone-zoo"}
        with httpx2.Client(headers=headers, timeout=self.timeout, follow_redirects=False) as client:
            for want in wants:
                with progress.task(want.url.rpartition("/")[2], want.size, "B") as bar:
                    self._fetch_one(client, want, bar)

    def _fetch_one(self, client: httpx2.Client, want: Want, bar: Bar) -> None:
        counter = _Counter(bar)
        for attempt in range(1, self.tries + 1):
            try:
                self._try(client, want, counter)
                return
            except _TryAgainError as error:
                problem, after = str(error), error.after
            except httpx2.TransportError as error:
                if _is_certificate(error):
                    raise NetworkError(
                        f"{want.url}: the server's certificate is not trusted: {error}",
                        url=want.url,
                        hint="if your proxy signs certificates itself, set SSL_CERT_FILE to its root certificate",
                    ) from error
                problem, after = f"{type(error).__name__}: {error}", None
            if attempt < self.tries:
                time.sleep(self._wait(attempt, after))
        raise NetworkError(
            f"{want.url}: gave up after {self.tries} tries: {problem}",
            url=_origin(want.url),
            hint="check the connection and pull again: the download resumes where it stopped",
        )

    def _wait(self, attempt: int, after: float | None) -> float:
        if after is not None:
            return min(max(after, 0.0), self.longest_wait)
        return min(self.backoff * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5), self.longest_wait)

    def _try(self, client: httpx2.Client, want: Want, counter: "_Counter") -> None:
        """One request for the bytes after the partial. Raises _TryAgainError when another request may succeed."""
        held = want.partial.stat().st_size if want.partial.exists() else 0
        if want.size is not None and held > want.size:
            held = _restart(want.partial)
        counter.set(held)
        if held and held == want.size:
            return
        with self._open(client, want, _range_headers(want, held)) as response:
            start = _start_of_body(response, want, held)
            if start is None:
                return
            _check_body(response, want)
            _remember_etag(response, want)
            with want.partial.open("r+b" if start else "wb") as file:
                file.truncate(start)
                file.seek(start)
                counter.set(start)
                self._save(response, file, want, counter)
        if "content-length" not in response.headers and want.size is not None and counter.count < want.size:
            raise _TryAgainError(f"the connection closed at byte {counter.count} of {want.size}")

    def _save(self, response: httpx2.Response, file: BinaryIO, want: Want, counter: "_Counter") -> None:
        """Append the body, at most one byte more than the expected size; that byte shows that the body is too long."""
        since, before = time.monotonic(), counter.count
        for chunk in response.iter_raw():
            if counter.count == 0 and _looks_like_html(response, chunk):
                raise NetworkError(
                    f"{want.url}: the server sent an HTML page instead of the file",
                    url=want.url,
                    hint="it sent text/html, maybe a log-in page or a proxy's notice: open the URL in a browser",
                )
            room = len(chunk) if want.size is None else want.size + 1 - counter.count
            file.write(chunk[:room])
            # Flushed, so that no byte is lost if the process is killed.
            file.flush()
            counter.set(counter.count + min(len(chunk), room))
            if len(chunk) >= room and want.size is not None and counter.count > want.size:
                return
            elapsed = time.monotonic() - since
            if elapsed > self.patience:
                if counter.count - before < self.slowest * elapsed:
                    raise _TryAgainError(f"fewer than {self.slowest} bytes a second for {self.patience:.0f} s")
                since, before = time.monotonic(), counter.count

    @contextmanager
    def _open(self, client: httpx2.Client, want: Want, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        """The response after all redirects; its status may be an error."""
        url = want.url
        for _ in range(MAX_REDIRECTS + 1):
            try:
                self.check_url(url)
                request = client.build_request("GET", url, headers=headers)
            except httpx2.InvalidURL as error:
                raise NetworkError(f"{want.url}: not a URL: {error}", url=want.url) from error
            response = client.send(request, stream=True)
            try:
                if not response.has_redirect_location:
                    yield response
                    return
            finally:
                response.close()
            url = self.redirected(url, response.headers["location"])
        raise NetworkError(f"{want.url}: more than {MAX_REDIRECTS} redirects", url=want.url)

    def check_url(self, url: str) -> None:
        """Raise NetworkError when this source must not request the URL."""

    def redirected(self, url: str, location: str) -> str:
        """The absolute URL of a redirect. Raises NetworkError when it may not be followed."""
        source = httpx2.URL(url)
        try:
            target = source.join(location)
        except httpx2.InvalidURL as error:
            raise NetworkError(f"{url}: redirects to an invalid URL: {error}", url=url) from error
        downgraded = target.scheme != "https" and not (target.scheme == source.scheme == "http")
        if downgraded or (_is_internal(target.host) and not _is_internal(source.host)):
            raise NetworkError(
                f"{url}: redirects to {target.scheme}://{target.host}, which is not followed",
                url=url,
                hint="a redirect may not leave https, nor lead into a private network",
            )
        return str(target)


class HttpSource(HttpsSource):
    """The source for plain http, which is not encrypted: only for servers on this machine."""

    scheme = "http"

    def check_url(self, url: str) -> None:
        """Raise NetworkError for plain http to a host that is not loopback, also after a redirect."""
        parsed = httpx2.URL(url)
        if parsed.scheme == "http" and not _is_loopback(parsed.host):
            raise NetworkError(f"{url}: plain http is refused for {parsed.host}", url=url, hint="use https")


class _Counter:
    """Counts the bytes of the file so far; every change advances the bar."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.count = 0

    def set(self, count: int) -> None:
        self.bar.advance(count - self.count)
        self.count = count


class _Etag(msgspec.Struct):
    """The ETag of a partial file, and the URL that sent it."""

    url: str
    etag: str


def _etag_path(want: Want) -> Path:
    return want.partial.with_name(want.partial.name + ".etag")


def _remember_etag(response: httpx2.Response, want: Want) -> None:
    """Keep the response's ETag beside the partial if it is strong; a weak ETag does not guarantee the same bytes."""
    etag = response.headers.get("etag", "")
    if etag.startswith('"'):
        _etag_path(want).write_bytes(msgspec.json.encode(_Etag(want.url, etag)))
    else:
        _etag_path(want).unlink(missing_ok=True)


def _range_headers(want: Want, held: int) -> dict[str, str]:
    if not held:
        return {}
    headers = {"Range": f"bytes={held}-"}
    try:
        known = msgspec.json.decode(_etag_path(want).read_bytes(), type=_Etag)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return headers
    # An ETag from another mirror is not sent: it is not valid for this URL.
    if known.url == want.url:
        headers["If-Range"] = known.etag
    return headers


def _start_of_body(response: httpx2.Response, want: Want, held: int) -> int | None:
    """The offset in the file at which the response's body begins; None if the file is already complete.

    Raises an error for every other response.
    """
    status = response.status_code
    if status == 200:
        return 0
    if status == 206:
        match = CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if match and int(match[1]) == held and match[2] in ("*", str(want.size or match[2])):
            return held
        _restart(want.partial)
        raise _TryAgainError(f"asked for bytes from {held} on, got {response.headers.get('content-range')}")
    if status == 416:
        if response.headers.get("content-range") == f"bytes */{held}" and want.size in (None, held):
            return None
        _restart(want.partial)
        raise _TryAgainError(f"status 416 for bytes from {held} on")
    reason = f"status {status} {response.reason_phrase}".strip()
    if status in TRANSIENT or status >= 500:
        raise _TryAgainError(reason, _retry_after(response.headers.get("retry-after")))
    if status == 407:
        hint = "put the name and password of your proxy into HTTPS_PROXY: http://NAME:PASSWORD@HOST:PORT"
        raise AccessError(f"{want.url}: the proxy denies access ({reason})", hint=hint)
    if status in (401, 403):
        raise AccessError(f"{want.url}: access denied ({reason})", hint="it needs an account or a license")
    raise NetworkError(f"{want.url}: {reason}", url=want.url, hint="try another source with --source SCHEME")


def _restart(partial: Path) -> int:
    """Remove the partial, and return 0, its new size."""
    partial.unlink(missing_ok=True)
    return 0


def _check_body(response: httpx2.Response, want: Want) -> None:
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise NetworkError(
            f"{want.url}: the server sent {encoding} content, although zoo requested no encoding", url=want.url
        )


def _looks_like_html(response: httpx2.Response, chunk: bytes) -> bool:
    is_html = response.headers.get("content-type", "").startswith("text/html")
    return is_html and chunk.lstrip()[:1] == b"<"


def _retry_after(value: str | None) -> float | None:
    """The seconds to wait that a Retry-After header states, as a number or as a date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


def _origin(url: str) -> str:
    parsed = httpx2.URL(url)
    return f"{parsed.scheme}://{parsed.netloc.decode()}/"


def _is_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_internal(host: str) -> bool:
    """Whether a host name or address belongs to this machine or to a private network."""
    try:
        addresses = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        # A name that cannot be resolved here, for example behind a proxy, is not the name of an internal host.
        return False
    return any(not ipaddress.ip_address(address).is_global for address in addresses)


@hookimpl
def zoo_register_sources() -> Iterable[type[Source]]:
    """The schemes of this module."""
    return [HttpsSource, HttpSource]
