"""Arrays in page-locked memory, with a compiled stand-in for the CUDA runtime that counts the calls."""

import ctypes
import gc
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zoo.runtime import io_binding
from zoo.runtime.io_binding import cuda_runtime, page_locked

#: The functions of libcudart that zoo calls.
RUNTIME = """
#include <stddef.h>
int locked = 0; size_t bytes = 0; int refuses = 0;
int cudaHostRegister(void *address, size_t size, unsigned flags) {
    if (refuses || flags != 1) return 1;
    locked += 1; bytes = size; return 0;
}
int cudaSetDevice(int index) { return index > 1; }
int cudaHostUnregister(void *address) { locked -= 1; return 0; }
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs gcc on Linux")
def test_pages_are_locked_for_as_long_as_the_array_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cudart.c").write_text(RUNTIME)
    path = tmp_path / "libcudart.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, tmp_path / "cudart.c"], check=True)
    library = ctypes.CDLL(str(path))
    locked = ctypes.c_int.in_dll(library, "locked")
    monkeypatch.setattr(io_binding, "cuda_runtime", lambda: library)
    like = np.ones((8, 3, 5), np.float32)
    first, second = page_locked(like), page_locked(like[:2])
    assert first is not None
    assert second is not None
    assert (first.shape, first.dtype, second.shape) == (like.shape, like.dtype, (2, 3, 5))
    assert (locked.value, ctypes.c_size_t.in_dll(library, "bytes").value) == (2, 2 * 15 * 4)
    del first
    gc.collect()
    assert locked.value == 1
    assert page_locked(like, 2) is None
    assert page_locked(np.empty((0, 3), np.float32)) is None
    ctypes.c_int.in_dll(library, "refuses").value = 1
    assert page_locked(like) is None


def test_without_cuda_nothing_is_locked() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert cuda_runtime() is None or page_locked(np.ones(4)) is None
    else:
        pytest.skip("this machine has a driver")


@pytest.mark.gpu
def test_a_gpu_copies_from_locked_pages() -> None:
    array = page_locked(np.zeros((4, 3, 224, 224), np.float32))
    assert array is not None
    array[...] = 1
    assert array.sum() == array.size
