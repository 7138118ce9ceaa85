"""The findings of `zoo doctor` as text for a bug report, without tokens, passwords and names of home folders."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from zoo.diagnostics.runtime_checks import version_of
from zoo.results import Check

HIDDEN = "***"
#: Variables that change the behaviour of zoo or its libraries. Variables that begin with ZOO_ or HF_ are shown too.
SHOWN_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS", "TMPDIR", "XDG_CACHE_HOME",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "TRANSFORMERS_OFFLINE",
)  # fmt: skip
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE|(^|_)(API_?|ACCESS_?|PRIVATE_?)?KEY(_|$)", re.I)
PROXY, SCHEME = re.compile(r"_PROXY$", re.I), re.compile(r"[a-z][a-z0-9+.-]*://", re.I)
#: Patterns of secrets that are hidden in every text: tokens of the Hub, logins in URLs, and keys in queries.
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
LOGIN = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s/?#]*@", re.I)
QUERY = re.compile(r"(?P<name>[?&][^=&\s]*(?:token|key|signature|password|secret)[^=&\s]*=)[^&\s'\"]+", re.I)
#: The shortest value of a secret variable that is hidden; a shorter one may be an ordinary word in other lines.
SHORTEST_SECRET = 6
PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "onnx", "numpy", "torch", "torchvision", "onnxscript", "tokenizers",
    "safetensors", "Pillow", "huggingface-hub", "timm", "transformers", "pyarrow", "msgspec", "typer", "pip",
)  # fmt: skip
MARKS = {"ok": "ok   ", "warn": "WARN ", "fail": "FAIL "}


def bug_report(checks: Sequence[Check]) -> str:
    """Markdown for an issue: the checks, versions and relevant variables, without secrets and home folders."""
    return "\n".join(["```text", *_lines(checks), "```"])


def without_secrets(checks: Iterable[Check], environ: Mapping[str, str]) -> list[Check]:
    """The same checks without tokens and passwords, which may come from a plugin's message, a proxy or a URL."""
    return [
        msgspec.structs.replace(each, found=hide(each.found, environ), fix=each.fix and hide(each.fix, environ))
        for each in checks
    ]


def hide(text: str, environ: Mapping[str, str]) -> str:
    """The text without the values of secret variables, logins of URLs, tokens of the Hub and keys in queries."""
    # A proxy may lack a scheme, and its password may contain a slash, so everything before its host is hidden.
    for value in {value for name, value in environ.items() if PROXY.search(name) and "@" in value}:
        scheme = SCHEME.match(value)
        text = text.replace(value, f"{scheme[0] if scheme else ''}{HIDDEN}@{value.rpartition('@')[2]}")
    secrets = {value for name, value in environ.items() if SECRET.search(name) and len(value) >= SHORTEST_SECRET}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = LOGIN.sub(rf"\g<scheme>{HIDDEN}@", text)
    return TOKEN.sub(HIDDEN, QUERY.sub(rf"\g<name>{HIDDEN}", text))


def _lines(checks: Sequence[Check]) -> Iterator[str]:
    def fit(text: str) -> str:
        # The text becomes one line, without backticks that would end the Markdown block around it.
        return _without_home(hide(" ".join(text.split()), os.environ)).replace("```", "'''")

    yield "zoo doctor"
    for each in checks:
        yield MARKS[each.state] + fit(f"{each.name}: {each.found}")
        if each.fix and each.state != "ok":
            yield "     fix: " + fit(each.fix)
    versions = ((name, version_of(name)) for name in PACKAGES)
    yield "packages: " + ", ".join(f"{name} {version}" for name, version in versions if version)
    for name, value in sorted(os.environ.items()):
        if name in SHOWN_VARIABLES or name.startswith(("ZOO_", "HF_")):
            yield fit(f"{name}={HIDDEN if SECRET.search(name) and value else value}")


def _without_home(text: str) -> str:
    """The text with `~` in place of the user's home folder, for its given and its resolved path."""
    homes = {str(Path.home()), str(Path.home().resolve())} - {os.sep}
    for home in sorted(homes, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)
    return text
