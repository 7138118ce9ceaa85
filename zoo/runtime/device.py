"""Devices: the requested device, the device that is used and the reason, and the devices of a session's nodes."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from zoo.errors import DeviceError, UsageError
from zoo.extras import RUNTIME, package_folder, require
from zoo.results import Placement
from zoo.runtime import cuda

#: ONNX Runtime's providers for a device, best first; a node that no other provider supports runs on the CPU.
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": (cuda.PROVIDER, "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", cuda.PROVIDER, "CPUExecutionProvider"),
}
#: The largest share of a graph's nodes that may run on the CPU if CUDA or TensorRT was requested. It is not 0, because
#: ONNX Runtime computes shapes on the CPU by design.
ON_CPU = 0.1
#: The major release of TensorRT that onnxruntime's provider is linked with.
TENSORRT = 10
HINT = "run the command with --device cpu or --device auto"


def onnxruntime() -> Any:
    """The onnxruntime module, with telemetry switched off. Raises MissingExtraError if it is not installed."""
    require("running a model", *RUNTIME)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    # If onnxruntime imported numpy itself, it would turn a Ctrl-C during that import into an ImportError.
    import numpy  # noqa: F401
    import onnxruntime  # noqa: TID251 - the one place that imports it

    return onnxruntime


def build_note() -> str:
    """The text of the file in which the installed onnxruntime describes its build; empty if there is no such file."""
    return package_text("onnxruntime", "capi/build_and_package_info.py")


def package_text(package: str, path: str) -> str:
    """The text of a file of an installed package, which is not imported; empty if there is no such file."""
    folder = package_folder(package)
    with suppress(OSError):
        return (folder / path).read_text(encoding="utf-8") if folder else ""
    return ""


def choose(device: str) -> Placement:
    """The device for a request (`auto`, `cpu`, `cuda[:N]` or `tensorrt[:N]`): `cpu`, `cuda:N` or `tensorrt:N`.

    `auto` takes the first CUDA device, or the CPU with the reason. Raises UsageError for any other request, and
    DeviceError, which names the missing part, when the device cannot be used.
    """
    kind, index = parse(device)
    if kind == "cpu":
        return Placement(asked=device, used="cpu")
    problem = tensorrt_problem() if kind == "tensorrt" else cuda_problem()
    if problem is None:
        return Placement(asked=device, used=f"{'cuda' if kind == 'auto' else kind}:{index}")
    if kind == "auto":
        return Placement(asked=device, used="cpu", why=problem)
    raise DeviceError(f"{device} cannot be used: {problem}", device=device, hint=HINT)


def choose_device(device: str) -> str:
    """The device for work that torch does too: `cpu` or `cuda:N`.

    Raises the errors of `choose`, and UsageError for TensorRT.
    """
    if parse(device)[0] == "tensorrt":
        raise UsageError(
            "TensorRT only runs exported models", hint="run the command with --device cuda or --device auto"
        )
    return choose(device).used


def parse(device: str) -> tuple[str, int]:
    """The kind (`auto`, `cpu`, `cuda` or `tensorrt`) and index of a device. Raises UsageError for anything else."""
    match = re.fullmatch(r"(auto|cpu|cuda|tensorrt)(?::(\d+))?", device)
    if match is None or (match[2] is not None and match[1] in ("auto", "cpu")):
        raise UsageError(
            f"unknown device '{device}'", hint="--device and ZOO_DEVICE take auto, cpu, cuda, cuda:1 or tensorrt"
        )
    return match[1], int(match[2] or 0)


def cuda_problem() -> str | None:
    """The first missing part of CUDA (driver, device, onnxruntime's build, library); None if CUDA can be used."""
    driver = cuda.find_driver()
    if driver.problem is not None:
        return driver.problem
    ort = onnxruntime()
    wheel = cuda.built_for(ort)
    if wheel is None:
        return "the installed onnxruntime is the CPU build: pip install 'backbone-zoo[gpu]'"
    if (too_old := cuda.version_problem(driver.cuda, wheel)) is not None:
        return ": ".join(too_old)
    # On Windows the search rules for libraries apply only inside a session, so they are not tried here.
    libraries = cuda.load_libraries(ort) if os.name == "posix" else {}
    missing = next((name for name, library in libraries.items() if library is None), None)
    return f"{missing} was not found: pip install 'backbone-zoo[gpu]'" if missing else None


def tensorrt_problem() -> str | None:
    """The first missing part of TensorRT, which includes the parts of CUDA; None if TensorRT can be used."""
    if (problem := cuda_problem()) is not None:
        return problem
    if "TensorrtExecutionProvider" not in onnxruntime().get_available_providers():
        return "the installed onnxruntime was built without TensorRT"
    if cuda.loads_tensorrt(TENSORRT):
        return None
    return f"libnvinfer.so.{TENSORRT} was not found: pip install 'backbone-zoo[tensorrt]'"


@contextmanager
def silenced() -> Iterator[None]:
    """Inside, ONNX Runtime prints no warnings about unknown devices and dropped providers.

    These warnings come from the logger of the process, which a session's options do not control. The logger's severity
    cannot be read, so it is set to the default afterwards.
    """
    runtime = onnxruntime()
    runtime.set_default_logger_severity(4)
    try:
        yield
    finally:
        runtime.set_default_logger_severity(2)


def placed(device: str, providers: Iterable[str], assignment: Iterable[Any]) -> dict[str, int]:
    """The number of a session's nodes by provider (`CUDA`, `CPU`), checked against the requested device.

    `providers` and `assignment` come from the session: get_providers() and get_provider_graph_assignment_info().
    Raises DeviceError when the device's provider was dropped, or when more than `ON_CPU` of the nodes run on the CPU.
    """
    kind, _, _ = device.partition(":")
    wanted = PROVIDERS[kind][0]
    if wanted not in providers:
        raise DeviceError(
            f"{device} was requested, but ONNX Runtime fell back to the CPU",
            device=device,
            hint="pip install 'backbone-zoo[gpu]' brings the CUDA libraries; or " + HINT,
        )
    nodes: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for part in assignment:
        for node in part.get_nodes():
            nodes[part.ep_name.removesuffix("ExecutionProvider")] += 1
            if part.ep_name == "CPUExecutionProvider":
                left[node.op_type] += 1
    total = sum(nodes.values())
    if kind != "cpu" and left.total() > ON_CPU * total:
        kinds = ", ".join(f"{name} {count}" for name, count in left.most_common(4))
        raise DeviceError(
            f"{device} was requested, but {left.total()} of {total} nodes run on the CPU ({kinds})",
            device=device,
            hint=HINT,
        )
    return dict(nodes)
