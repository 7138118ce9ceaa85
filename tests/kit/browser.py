"""A headless Chromium, with a page that runs ONNX files with onnxruntime-web."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.kit.servers import Loopback, whole

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
    # No host name resolves, so that requests to other hosts fail, the browser's own included.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
#: The files of onnxruntime-web that a page needs, with their media types.
RUNTIME = {
    "ort.wasm.min.mjs": "text/javascript",
    "ort-wasm-simd-threaded.mjs": "text/javascript",
    "ort-wasm-simd-threaded.wasm": "application/wasm",
}
PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><script type="module">
import * as ort from "/ort.wasm.min.mjs";
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = location.origin + "/";
const arrays = {uint8: Uint8Array, int64: BigInt64Array, float32: Float32Array};
const bytes = async path => (await fetch(path)).arrayBuffer();
window.load = async beside => {
    const externalData = await Promise.all(beside.map(async path => ({path, data: new Uint8Array(await bytes(path))})));
    window.session = await ort.InferenceSession.create("/model.onnx", {externalData});
};
window.run = async inputs => {
    const feeds = {};
    for (const {name, type, dims, path} of inputs)
        feeds[name] = new ort.Tensor(type, new arrays[type](await bytes(path)), dims);
    const found = await session.run(feeds);
    return Object.fromEntries(Object.entries(found).map(([name, {data, dims}]) => [name, {data: [...data], dims}]));
};
window.ready = true;
</script>"""


@contextmanager
def chromium() -> "Iterator[Browser]":
    """A running browser; the test is skipped if none is installed."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("needs chromium, and it is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=list(SWITCHES))
        yield browser
        browser.close()


def answers(runtime: Path, bundle: Path, batches: "list[Mapping[str, np.ndarray]]") -> list[dict[str, np.ndarray]]:
    """The outputs of the bundle's file for each batch, computed by the onnxruntime-web in `runtime`.

    Asserts that the page printed no message and sent requests only to the server of these files.
    """
    beside = [path.name for path in bundle.glob("*.bin")]
    with Loopback() as server, chromium() as browser:
        server.script("/", whole(PAGE.encode(), headers={"Content-Type": "text/html"}))
        for name, kind in RUNTIME.items():
            server.script(f"/{name}", whole((runtime / name).read_bytes(), headers={"Content-Type": kind}))
        for name in ("model.onnx", *beside):
            server.script(f"/{name}", whole((bundle / name).read_bytes()))
        page = browser.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.origin)
        page.wait_for_function("window.ready")
        page.evaluate("beside => load(beside)", beside)
        found = []
        for number, batch in enumerate(batches):
            inputs: list[dict[str, Any]] = []
            for name, array in batch.items():
                path = f"/{number}/{name}"
                server.script(path, whole(array.tobytes()))
                inputs.append({"name": name, "type": array.dtype.name, "dims": array.shape, "path": path})
            outputs = page.evaluate("inputs => run(inputs)", inputs)
            found.append({name: np.reshape(each["data"], each["dims"]) for name, each in outputs.items()})
        assert said == []
        assert {url.startswith((f"{server.origin}/", "data:,")) for url in asked} == {True}
    return found
