"""zoo doctor on broken runtimes and GPUs, with real wheels and linkers and with drivers compiled to fail."""

import ctypes.util
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.kit.cost import cpu_seconds
from tests.kit.installed import NOBODY, Site, checks
from zoo.diagnostics.runtime_checks import version_of

#: The functions of libcuda that zoo doctor calls.
DRIVER = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_OF_A_TEST"; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Toy GPU", size); return 0; }
int cuDeviceTotalMem_v2(size_t *total, int device) { *total = 80000000000; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &strncpy; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = FREE; *total = 80000000000; return 0; }
"""
SOUND = {"INIT": "0", "VERSION": "13000", "COUNT": "1", "FREE": "70000000000"}
CUDNN = "size_t cudnnGetVersion(void) { return 92400; } size_t cudnnGetCudartVersion(void) { return 12090; }"

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="libraries are built as Linux has them"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc"),
]
with_gpu_wheel = pytest.mark.skipif(version_of("onnxruntime-gpu") is None, reason="the CPU build is installed")
without_cuda = pytest.mark.skipif(ctypes.util.find_library("cublasLt") is not None, reason="the system has CUDA itself")


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    folder = tmp_path / "libraries"
    folder.mkdir()
    return folder


def compile_library(folder: Path, name: str, code: str, **defines: str) -> None:
    """A shared library `name` in `folder`."""
    source = folder / "code.c"
    source.write_text(f"#include <stddef.h>\n{code}\n")
    options = [f"-D{key}={value}" for key, value in defines.items()]
    command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{name}", *options, str(source), "-o", str(folder / name)]
    subprocess.run(command, check=True)


def with_driver(site: Site, folder: Path, code: int, **facts: str) -> dict[str, dict[str, str]]:
    """The checks on a machine whose driver reports these facts."""
    compile_library(folder, "libcuda.so.1", DRIVER, **{**SOUND, **facts})
    return checks(site, code, LD_LIBRARY_PATH=str(folder))


def hide_libraries(site: Site) -> None:
    """Import the runtime from another folder, beside which it finds no CUDA wheels."""
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    (site.folder / "onnxruntime").symlink_to(Path(spec.origin).parent)


def metadata(site: Site, name: str, version: str) -> None:
    """The metadata that pip installs for a distribution, without its module."""
    site.install(name, "", version=version)
    (site.folder / f"{name.replace('-', '_')}.py").unlink()


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="there is a driver here")
def test_without_a_gpu_it_says_so_soon_and_nothing_else_speaks(site: Site, tmp_path: Path) -> None:
    done = site.zoo("doctor")
    assert done.returncode == 0
    assert "gpu:" in done.stdout
    assert "not usable, models run on the CPU: no NVIDIA driver: libcuda was not found" in done.stdout
    assert done.stderr == "next: zoo list\n"
    assert all(re.match(r"[✓✗-] \w|    fix: ", line) for line in done.stdout.splitlines()), done.stdout
    environment = {**os.environ, "HF_ENDPOINT": NOBODY}
    seconds, said = cpu_seconds([sys.executable, "-m", "zoo_cli", "doctor", "--json"], env=environment)
    assert json.loads(said)["schema_version"] == 1
    assert seconds < 3


def test_both_builds_of_onnxruntime(site: Site) -> None:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        metadata(site, name, "1.31.0")
    capi = site.folder / "onnxruntime/capi"
    capi.mkdir(parents=True)
    (capi.parent / "__init__.py").write_text("")
    for winner in ("onnxruntime", "onnxruntime-gpu"):
        (capi / "build_and_package_info.py").write_text(f"package_name = '{winner}'\n__version__ = '1.31.0'\n")
        found = checks(site, 7)["onnxruntime"]
        assert found["state"] == "fail"
        assert "onnxruntime 1.31.0 and onnxruntime-gpu 1.31.0 are both installed" in found["found"]
        assert found["found"].endswith(f"; the files of {winner} 1.31.0 lie on top")
        assert found["fix"] == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'backbone-zoo[gpu]'"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("", "AttributeError"),  # The remains after one of both was uninstalled.
        ("raise ImportError('libodd.so.1: cannot open shared object file')", "ImportError: libodd.so.1"),
        ("import os; os.kill(os.getpid(), 11)", "importing it crashed the process (SIGSEGV)"),
        ("import sys; sys.exit(3)", "importing it ended the process with exit code 3"),
    ],
)
def test_a_runtime_that_cannot_be_imported(site: Site, code: str, words: str) -> None:
    (site.folder / "onnxruntime").mkdir()
    (site.folder / "onnxruntime/__init__.py").write_text(f"print('a banner')\n{code}\n")
    done = site.zoo("doctor", "--json")
    assert done.returncode == 7
    assert done.stderr == ""
    (found,) = (each for each in json.loads(done.stdout)["checks"] if each["state"] == "fail")
    assert found["name"] == "onnxruntime"
    assert words in found["found"]
    assert re.fullmatch(r"pip uninstall -y onnxruntime(-gpu)? && pip install 'backbone-zoo\[[cg]pu\]'", found["fix"])


@pytest.mark.parametrize(
    ("code", "words"),
    [("34", "stubs out of LD_LIBRARY_PATH"), ("803", "sudo reboot"), ("999", "modprobe"), ("4", "nvidia-smi")],
)
def test_a_driver_that_fails(site: Site, libraries: Path, code: str, words: str) -> None:
    found = with_driver(site, libraries, 7, INIT=code)["gpu"]
    assert found["state"] == "fail"
    problem = f"the NVIDIA driver finds no device: CUDA_ERROR_OF_A_TEST ({code})"
    assert found["found"] == f"not usable, models run on the CPU: {problem}"
    assert words in found["fix"]


def test_a_driver_that_crashes(site: Site, libraries: Path) -> None:
    compile_library(libraries, "libcuda.so.1", "int cuInit(unsigned flags) { *(volatile int *)0 = 0; return 0; }")
    found = checks(site, 7, LD_LIBRARY_PATH=str(libraries))
    assert found["gpu"]["found"] == "not usable: asking the NVIDIA driver crashed the process (SIGSEGV)"
    # The runtime's check was not reached, so that it does not fail.
    assert found["onnxruntime"]["state"] == "warn"
    assert "nvidia-smi" in found["gpu"]["fix"]


def test_a_file_that_is_no_library(site: Site, libraries: Path) -> None:
    (libraries / "libcuda.so.1").write_text("not a library")
    found = checks(site, 7, LD_LIBRARY_PATH=str(libraries))["gpu"]
    assert "libcuda cannot be loaded: " in found["found"]


def test_no_device(site: Site, libraries: Path) -> None:
    """A driver without a device is no fault, unless CUDA was asked for."""
    found = with_driver(site, libraries, 0, COUNT="0")["gpu"]
    assert found["state"] == ("warn" if version_of("onnxruntime-gpu") else "ok")
    where = {"LD_LIBRARY_PATH": str(libraries)}
    hidden = checks(site, 0, CUDA_VISIBLE_DEVICES="", **where)["gpu"]
    assert (hidden["state"], hidden["fix"]) == ("warn", "unset CUDA_VISIBLE_DEVICES")
    asked = checks(site, 7, ZOO_DEVICE="cuda:0", **where)["gpu"]
    assert (asked["state"], asked["fix"]) == ("fail", "unset ZOO_DEVICE")
    assert asked["found"].endswith("ZOO_DEVICE is cuda:0")


@with_gpu_wheel
def test_a_driver_too_old_for_the_wheel(site: Site, libraries: Path) -> None:
    found = with_driver(site, libraries, 7, VERSION="12040")
    assert found["gpu"]["found"] == "Toy GPU (70.0 of 80.0 GB free); the driver runs CUDA up to 12.4"
    assert "onnxruntime is built for CUDA 13.0, the driver runs CUDA up to 12.4" in found["cuda libraries"]["found"]
    assert found["cuda libraries"]["fix"] == "update the NVIDIA driver to 580 or newer"


@with_gpu_wheel
def test_little_memory(site: Site, libraries: Path) -> None:
    found = with_driver(site, libraries, 7, FREE="300000000")["gpu"]
    assert found["state"] == "warn"
    assert "0.3 of 80.0 GB free" in found["found"]
    assert "nvidia-smi" in found["fix"]


@with_gpu_wheel
def test_a_driver_that_promises_and_does_not_run(site: Site, libraries: Path) -> None:
    """The runtime lists CUDA, the driver a device, and no library is missing: only creating a session fails."""
    found = with_driver(site, libraries, 7)
    assert found["gpu"]["state"] == "ok"
    assert found["cuda libraries"]["state"] == "ok"
    assert found["cuda session"]["state"] == "fail"
    assert "a one-node model does not run on cuda:0: " in found["cuda session"]["found"]
    assert "undefined symbol" in found["cuda session"]["found"]


@with_gpu_wheel
@without_cuda
def test_missing_libraries(site: Site, libraries: Path) -> None:
    hide_libraries(site)
    fix = f"pip install 'onnxruntime-gpu[cuda,cudnn]=={version_of('onnxruntime-gpu')}'"
    # With a GPU missing libraries are a fault, without one they are only listed.
    for found in (with_driver(site, libraries, 7), with_driver(site, libraries, 0, COUNT="0")):
        state = "fail" if found["gpu"]["state"] == "ok" else "warn"
        assert (found["cuda libraries"]["state"], found["cuda libraries"]["fix"]) == (state, fix)
        assert "libcublasLt.so.13" in found["cuda libraries"]["found"]
        assert "libcudnn.so.9" in found["cuda libraries"]["found"]
        if state == "fail":
            # The linker names the first missing library.
            assert "libcublasLt.so.13: cannot open shared object file" in found["cuda session"]["found"]


@with_gpu_wheel
@without_cuda
def test_cudnn_for_another_cuda(site: Site, libraries: Path) -> None:
    hide_libraries(site)
    for name in ("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13"):
        compile_library(libraries, name, "")
    compile_library(libraries, "libcudnn.so.9", CUDNN)
    found = with_driver(site, libraries, 0, COUNT="0")["cuda libraries"]
    assert found["state"] == "warn"
    assert found["found"].endswith("CUDA 13.0, the installed cuDNN for CUDA 12")
    assert "pip install --force-reinstall nvidia-cudnn-cu13" in found["fix"]


@with_gpu_wheel
def test_two_builds_of_cudnn(site: Site, libraries: Path) -> None:
    metadata(site, "nvidia-cudnn-cu12", "9.10.2.21")
    found = with_driver(site, libraries, 7)["cuda libraries"]
    assert found["state"] == "fail"
    assert "nvidia-cudnn-cu12 is installed: it has the same files as nvidia-cudnn-cu13" in found["found"]
    both = "nvidia-cudnn-cu12 nvidia-cudnn-cu13"
    assert found["fix"] == f"pip uninstall -y {both} && pip install nvidia-cudnn-cu13"


@with_gpu_wheel
@pytest.mark.parametrize(
    ("cuda", "words"), [("'12.6'", "built for CUDA 12.6, onnxruntime"), ("None", "does not use the GPU")]
)
def test_torch_for_another_cuda(site: Site, libraries: Path, cuda: str, words: str) -> None:
    metadata(site, "torch", "2.14.1")
    (site.folder / "torch").mkdir()
    (site.folder / "torch/__init__.py").write_text("raise SystemExit('torch is not imported')")
    (site.folder / "torch/version.py").write_text(f"from typing import Optional\ncuda: Optional[str] = {cuda}\n")
    found = with_driver(site, libraries, 7)["torch"]
    assert found["state"] == "warn"
    assert words in found["found"]
    assert found["fix"].endswith("torch torchvision --index-url https://download.pytorch.org/whl/cu130")


@pytest.mark.gpu
def test_on_a_gpu(site: Site) -> None:
    found = checks(site, 0)
    assert {found[name]["state"] for name in ("gpu", "cuda libraries", "cuda session")} == {"ok"}
    assert found["cuda session"]["found"] == "a one-node model runs on cuda:0"
    assert "GB free" in found["gpu"]["found"]
