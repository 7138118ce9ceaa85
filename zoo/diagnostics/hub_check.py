"""Whether the Hugging Face Hub can be reached from here, asked the way its own client asks, in a second or two."""

import os
import queue
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from zoo.results import Check

DEFAULT = "https://huggingface.co"
#: Seconds for the answer. A name server that is silent holds up a process for longer: it is not waited for.
LIMIT = 2.0
TRUE = ("1", "ON", "YES", "TRUE")
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


def begin(*, offline: bool) -> Callable[[], Check]:
    """Start to ask; what is returned waits for the answer, LIMIT seconds at most. Offline nothing is asked."""
    silent = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "").upper() in TRUE]
    if offline:
        return lambda: Check(name="hub", state="ok", found="not asked: zoo is offline, nothing is fetched")
    if silent:
        found = f"not asked: {silent[0]} is set, nothing is fetched from the Hub"
        return lambda: Check(name="hub", state="ok", found=found)
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    started = time.monotonic()
    threading.Thread(target=lambda: answers.put(_ask(endpoint)), daemon=True).start()

    def finish() -> Check:
        try:
            problem = answers.get(timeout=max(0.0, started + LIMIT - time.monotonic()))
        except queue.Empty:
            problem = f"no answer in {LIMIT:g} s"
        if problem is None:
            return Check(name="hub", state="ok", found=f"{endpoint} answers")
        return Check(name="hub", state="warn", found=f"{endpoint} cannot be reached: {problem}", fix=_fix(endpoint))

    return finish


def _ask(endpoint: str) -> str | None:
    """Why there is no good answer, None where there is one. No token is sent."""
    # The Hub's client is made of this one: proxies and certificates count for both alike.
    import httpx2

    try:
        answer = httpx2.head(endpoint, timeout=LIMIT)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError, ImportError) as error:
        # ImportError is for a proxy of a kind that needs one more package.
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
        fix = f"set HTTPS_PROXY where a proxy leads to {urlsplit(endpoint).hostname}"
    return f"{fix}; export ZOO_OFFLINE=1 to do with what was pulled"
