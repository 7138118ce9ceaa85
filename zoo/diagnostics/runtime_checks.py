"""The checks of `zoo doctor` on the runtime and the GPU: wheels, driver, libraries, a real session, torch."""

import importlib.metadata
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from zoo.diagnostics.gpu_probe import Trial
from zoo.extras import RUNTIME
from zoo.results import Check
from zoo.runtime.cuda import BROKEN, NO_DEVICE, Device, Driver, version_problem
from zoo.runtime.device import build_note, package_text
from zoo.schema import canonical
from zoo.system.process import Child, EndedError, python

#: Seconds that the probe may take: the first session on a GPU loads gigabytes of libraries.
PROBE_LIMIT = 60.0
#: Distributions that all install the import package onnxruntime.
WHEELS = {
    "onnxruntime",
    *(f"onnxruntime-{kind}" for kind in ("gpu", "directml", "openvino", "rocm", "migraphx", "qnn", "training")),
    *("ort-nightly", "ort-nightly-gpu", "onnxruntime-silicon"),
}
INSTALL_GPU, INSTALL_CPU = "pip install 'backbone-zoo[gpu]'", "pip install 'backbone-zoo[cpu]'"
#: Fixes by the driver's error code: see `enum cudaError_enum` of cuda.h.
DRIVER_FIXES = {
    34: "leave the folder of CUDA's stubs out of LD_LIBRARY_PATH",
    802: "sudo systemctl restart nvidia-fabricmanager",
    803: "sudo reboot: the driver was updated and the old one still runs",
    804: "leave the folder of CUDA's compat libraries out of LD_LIBRARY_PATH, or update the driver",
    999: "sudo modprobe -r nvidia_uvm && sudo modprobe nvidia_uvm",
}
LITTLE_MEMORY = 1_000_000_000
ON_CPU = "models run on the CPU"


def begin_trial() -> Callable[[], Trial]:
    """Start the probe in a child process, and return a function that waits at most PROBE_LIMIT seconds for its end."""
    # Messages that libraries print are dropped, because the checks report the errors.
    child = Child(python("-m", "zoo.diagnostics.gpu_probe"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PROBE_LIMIT

    def finish() -> Trial:
        facts: dict[str, Any] = {}
        with child:
            try:
                while True:
                    facts |= child.receive(max(0.0, deadline - time.monotonic()), PROBE_LIMIT).data
            except EndedError as ended:
                # A child that finished has the exit code 0.
                problem = None if ended.code == 0 else str(ended)
        return msgspec.convert({**facts, "ended": problem}, Trial)

    return finish


def checks(trial: Trial) -> Iterator[Check]:
    """Yields the checks of the runtime, the GPU, its libraries, a session on it, and torch."""
    wheels = {name: version for name in sorted(WHEELS) if (version := version_of(name))}
    yield _runtime(trial, wheels)
    yield _gpu(trial, wheels)
    if trial.runtime is not None and trial.runtime.cuda is not None:
        yield _libraries(trial, trial.runtime.cuda)
        if _devices(trial):
            yield _session(trial)
    yield _torch(trial)


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _runtime(trial: Trial, wheels: dict[str, str]) -> Check:
    """The check of the installed ONNX Runtime. Its builds share one import package and overwrite each other's files."""
    found = " and ".join(f"{name} {version}" for name, version in wheels.items())
    install = INSTALL_CPU if set(wheels) == {"onnxruntime"} else INSTALL_GPU
    again = f"pip uninstall -y {' '.join(wheels)} && {install}"
    if len(wheels) > 1:
        wins = f"; the files of {winner} lie on top" if (winner := _winner()) else ""
        return _fault("onnxruntime", f"{found} are both installed and overwrite each other{wins}", again)
    missing = [name for name in RUNTIME if find_spec(name) is None]
    if missing:
        detail = f"not installed: {', '.join(missing)}; models can be listed and pulled, not run"
        return Check("onnxruntime", "warn", detail, f"{INSTALL_GPU}, or [cpu]")
    if trial.driver is None:
        detail = f"{found}; not tried, because asking the NVIDIA driver {trial.ended}"
        return Check("onnxruntime", "warn", detail, "repair the driver first: see gpu")
    problem = trial.runtime.problem if trial.runtime else f"importing it {trial.ended}"
    if problem is None:
        problem = trial.cpu.problem if trial.cpu else f"a session {trial.ended}"
    if problem is not None:
        return _fault("onnxruntime", f"{found or 'onnxruntime'}: {problem}", again)
    return Check("onnxruntime", "ok", f"{found}; a one-node model runs on the CPU")


def _winner() -> str | None:
    """The distribution whose files `import onnxruntime` finds, by onnxruntime's own build note."""
    facts = dict(re.findall(r"^(package_name|__version__) = '([^']*)'", build_note(), re.MULTILINE))
    return " ".join(facts[key] for key in ("package_name", "__version__") if key in facts) or None


def _devices(trial: Trial) -> tuple[Device, ...]:
    return trial.driver.devices if trial.driver else ()


def _gpu(trial: Trial, wheels: dict[str, str]) -> Check:
    """The check of the driver and its devices. No GPU is not an error, unless ZOO_DEVICE requests CUDA."""
    driver = trial.driver or Driver(problem=f"asking the NVIDIA driver {trial.ended}", code=BROKEN)
    asked = os.environ.get("ZOO_DEVICE", "")
    has_gpu_build = set(wheels) != {"onnxruntime"} and bool(wheels)
    if driver.problem is None:
        devices = ", ".join(map(_describe, driver.devices))
        newest = ".".join(map(str, driver.cuda)) if driver.cuda else "?"
        found = f"{devices}; the driver runs CUDA up to {newest}"
        if trial.runtime is not None and trial.runtime.problem is None and trial.runtime.cuda is None:
            fix = f"pip uninstall -y {' '.join(wheels)} && {INSTALL_GPU}"
            return _without_gpu(asked, f"{found}; the installed onnxruntime is the CPU build, {ON_CPU}", fix)
        if any(device.free is not None and device.free < LITTLE_MEMORY for device in driver.devices):
            return Check("gpu", "warn", found, "nvidia-smi shows which process holds the memory")
        return Check("gpu", "ok", found)
    works = trial.cpu is not None and trial.cpu.problem is None
    found = f"not usable{f', {ON_CPU}' if works else ''}: {driver.problem}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if driver.code == NO_DEVICE and hidden is not None:
        return _without_gpu(asked, f"{found}; CUDA_VISIBLE_DEVICES is {hidden!r}", "unset CUDA_VISIBLE_DEVICES")
    if driver.code is None and Path("/proc/driver/nvidia/version").exists():
        # The kernel module is loaded, so this is a container without access to the driver's library.
        return _without_gpu(asked, found, "docker run --gpus all, or the same option of your container runtime")
    if driver.code in (None, NO_DEVICE):
        if not has_gpu_build and not asked.startswith("cuda"):
            return Check("gpu", "ok", found)
        fix = "install NVIDIA's driver, nvidia-smi then lists the GPU; without a GPU, ignore this"
        return _without_gpu(asked, found, "unset ZOO_DEVICE" if asked.startswith("cuda") else fix)
    unknown = "nvidia-smi shows the driver's error; sudo reboot after an update of the driver"
    return _fault("gpu", found, DRIVER_FIXES.get(driver.code, unknown))


def _without_gpu(asked: str, found: str, fix: str) -> Check:
    """A check with a warning; with a fault if ZOO_DEVICE requests CUDA, because then no model runs."""
    if asked.startswith("cuda"):
        return _fault("gpu", f"{found}; ZOO_DEVICE is {asked}", fix)
    return Check("gpu", "warn", found, fix)


def _fault(name: str, found: str, fix: str) -> Check:
    return Check(name, "fail", found, fix, exit_code=7)


def _describe(device: Device) -> str:
    if device.total is None:
        return device.name
    free = "" if device.free is None else f"{device.free / 1e9:.1f} of "
    return f"{device.name} ({free}{device.total / 1e9:.1f} GB{' free' if free else ''})"


def _libraries(trial: Trial, built_for: str) -> Check:
    """The check of CUDA's and cuDNN's libraries against the versions that onnxruntime was built for."""
    name, major = "cuda libraries", built_for.partition(".")[0]

    def bad(found: str, fix: str) -> Check:
        # Without a GPU the libraries are not used, so their faults are only warnings.
        return _fault(name, found, fix) if _devices(trial) else Check(name, "warn", found, fix)

    wheel = f"onnxruntime is built for CUDA {built_for}"
    if trial.driver and (too_old := version_problem(trial.driver.cuda, built_for)) is not None:
        return bad(*too_old)
    if trial.libraries is None:
        return bad(f"loading them {trial.ended}", _libraries_again())
    cudnn = f"nvidia-cudnn-cu{major}"
    names = {canonical(found.metadata["Name"] or "") for found in importlib.metadata.distributions()}
    if others := sorted(name for name in names - {cudnn} if re.fullmatch(r"nvidia-cudnn-cu\d+", name)):
        found = f"{wheel}, and {', '.join(others)} is installed: it has the same files as {cudnn}"
        return bad(found, f"pip uninstall -y {' '.join([*others, cudnn])} && pip install {cudnn}")
    if trial.libraries.missing:
        return bad(f"{wheel}; not found: {', '.join(trial.libraries.missing)}", _libraries_again())
    if trial.libraries.cudnn_cuda not in (None, int(major) if major.isdecimal() else None):
        found = f"{wheel}, the installed cuDNN for CUDA {trial.libraries.cudnn_cuda}"
        return bad(found, f"pip install --force-reinstall {cudnn}; leave other copies of cuDNN out of LD_LIBRARY_PATH")
    return Check(name, "ok", f"CUDA {major} and cuDNN {trial.libraries.cudnn or '?'}, as {wheel}")


def _libraries_again() -> str:
    """The command that installs the libraries for the installed version of onnxruntime."""
    version = version_of("onnxruntime-gpu")
    return f"pip install 'onnxruntime-gpu[cuda,cudnn]=={version}'" if version else INSTALL_GPU


def _session(trial: Trial) -> Check:
    """The check that runs a one-node model on CUDA; onnxruntime lists CUDA even on machines where it does not work."""
    problem = trial.cuda.problem if trial.cuda else f"it {trial.ended}"
    if problem is None:
        return Check("cuda session", "ok", "a one-node model runs on cuda:0")
    fix = f"{_libraries_again()}; until then: export ZOO_DEVICE=cpu"
    return _fault("cuda session", f"a one-node model does not run on cuda:0: {problem}", fix)


def _torch(trial: Trial) -> Check:
    missing = [name for name in ("torch", "torchvision", "onnxscript") if find_spec(name) is None]
    if missing:
        found = f"without {', '.join(missing)}: bundles run, nothing can be fine-tuned or exported"
        return Check("torch", "warn", found, "pip install 'backbone-zoo[train]'")
    # The version is read from torch's file, because importing torch would take seconds.
    match = re.search(r"^cuda(?:: [^=]+)? = '([^']+)'", package_text("torch", "version.py"), re.MULTILINE)
    version, cuda = version_of("torch") or "installed", match[1] if match else None
    built_for = trial.runtime.cuda if trial.runtime else None
    found = f"{version}, built {f'for CUDA {cuda}' if cuda else 'without CUDA'}"
    if built_for is None or not _devices(trial):
        return Check("torch", "ok", found)
    build = "cu" + "".join(built_for.split(".")[:2])
    fix = f"pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/{build}"
    if cuda is None:
        return Check("torch", "warn", f"{found}: it does not use the GPU", fix)
    if cuda.partition(".")[0] != built_for.partition(".")[0]:
        found = f"{found}, onnxruntime for CUDA {built_for}: in one process, both use the cuDNN that is loaded first"
        return Check("torch", "warn", found, fix)
    return Check("torch", "ok", found)
