"""The check whether the Hugging Face Hub can be reached, with the HTTP library of the Hub's own client."""

import os
import queue
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from zoo.results import Check

DEFAULT = "https://huggingface.co"
#: Seconds to wait for the answer. Without a limit a silent name server would block for longer.
HUB_LIMIT = 2.0
TRUE = ("1", "ON", "YES", "TRUE")
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


def begin(*, offline: bool) -> Callable[[], Check]:
    """Start the request, and return a function that waits at most HUB_LIMIT seconds for its result.

    With `offline` no request is sent, and the function returns at once.
    """
    silent = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "").upper() in TRUE]
    if offline or silent:
        reason = "zoo is offline" if offline else f"{silent[0]} is set"
        return lambda: Check("hub", "ok", f"not asked: {reason}")
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    started = time.monotonic()
    threading.Thread(target=lambda: answers.put(_ask(endpoint)), daemon=True).start()

    def finish() -> Check:
        try:
            problem = answers.get(timeout=max(0.0, started + HUB_LIMIT - time.monotonic()))
        except queue.Empty:
            problem = f"no answer in {HUB_LIMIT:g} s"
        if problem is None:
            return Check("hub", "ok", f"{endpoint} answers")
        return Check("hub", "warn", f"{endpoint} cannot be reached: {problem}", _fix(endpoint))

    return finish


def _ask(endpoint: str) -> str | None:
    """The reason why the Hub cannot be used; None if it answered well. No token is sent."""
    # The Hub's client uses the same library, so proxies and certificates have the same effect.
    import httpx2

    try:
        answer = httpx2.head(endpoint, timeout=HUB_LIMIT)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError, ImportError) as error:
        # An ImportError means that this kind of proxy needs another package.
        return str(error).strip().partition("\n")[0] or type(error).__name__
    if answer.status_code >= 500 or answer.status_code == 407:
        return f"it answers with status {answer.status_code}"
    return None


def _fix(endpoint: str) -> str:
    proxies = [name for name in PROXIES if os.environ.get(name)]
    if endpoint != DEFAULT and "HF_ENDPOINT" in os.environ:
        fix = "unset HF_ENDPOINT"
    elif proxies:
        fix = f"set {proxies[0]} to the proxy of your network, or unset it"
    else:
        fix = f"set HTTPS_PROXY if {urlsplit(endpoint).hostname} is behind a proxy"
    return f"{fix}; or export ZOO_OFFLINE=1 to use only pulled models"
