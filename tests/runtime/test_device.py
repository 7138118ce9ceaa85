"""The requested device runs the model, or an error names the missing part."""

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from zoo import DeviceError, Placement, UsageError, Zoo
from zoo.runtime.cuda import version_problem
from zoo.runtime.device import ON_CPU, choose, choose_device, cuda_problem, parse, placed
from zoo.runtime.ort import Settings, create_session, providers
from zoo.system.cpu import cores, cpu_quota

COMMAND = (sys.executable, "-c", "from zoo_cli.app import process; process()")


class Node(NamedTuple):
    """The fields of ONNX Runtime's EpAssignedNode."""

    op_type: str


class Part(NamedTuple):
    """The fields of ONNX Runtime's EpAssignedSubgraph."""

    ep_name: str
    nodes: list[Node]

    def get_nodes(self) -> list[Node]:
        return self.nodes


def report(on_cuda: int, on_cpu: int) -> list[Part]:
    """The report of a CUDA session, which has one subgraph for each node."""
    there = [Part("CUDAExecutionProvider", [Node("Conv")]) for _ in range(on_cuda)]
    return [*there, *(Part("CPUExecutionProvider", [Node("Resize" if n % 3 else "Shape")]) for n in range(on_cpu))]


CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_asked_cuda_got_some_nodes_on_the_cpu() -> None:
    with pytest.raises(DeviceError) as caught:
        placed("cuda:0", CUDA, report(106, 12))
    assert caught.value.message == "cuda:0 was requested, but 12 of 118 nodes run on the CPU (Resize 8, Shape 4)"
    assert caught.value.exit_code == 7
    assert caught.value.hint == "run the command with --device cpu or --device auto"


def test_a_few_nodes_on_the_cpu_are_reported_and_no_error() -> None:
    assert placed("cuda:0", CUDA, report(107, 11)) == {"CUDA": 107, "CPU": 11}
    assert 11 / 118 <= ON_CPU < 12 / 118


def test_tensorrt_counts_the_nodes_of_its_subgraphs() -> None:
    names = ["TensorrtExecutionProvider", *CUDA]
    engine = Part("TensorrtExecutionProvider", [Node("Conv")] * 90)
    assert placed("tensorrt:0", names, [engine, *report(8, 2)]) == {"Tensorrt": 90, "CUDA": 8, "CPU": 2}
    with pytest.raises(DeviceError, match="tensorrt:0 was requested, but ONNX Runtime fell back"):
        placed("tensorrt:0", CUDA, report(100, 0))


def test_a_real_session_reports_its_nodes(shelf: Path) -> None:
    session = Zoo().session("tiny-bert", "cpu")
    assert session.placement.used == session.placement.asked == "cpu"
    assert session.placement.why is None
    assert set(session.placement.nodes) == {"CPU"}
    assert session.placement.nodes["CPU"] > 20


@pytest.mark.parametrize(
    ("driver", "wheel", "fix"),
    [
        ((13, 0), "13.0", None),
        ((13, 1), "13.0", None),
        ((14, 0), "13.0", None),
        (None, "13.0", None),
        ((12, 8), "unknown", None),
        ((12, 8), "13.0", "update the NVIDIA driver to 580 or newer"),
        ((12, 8), "99.0", "update the NVIDIA driver"),
    ],
)
def test_the_versions_of_cuda(driver: tuple[int, int] | None, wheel: str, fix: str | None) -> None:
    problem = f"onnxruntime is built for CUDA {wheel}, the driver runs CUDA up to 12.8"
    assert version_problem(driver, wheel) == (None if fix is None else (problem, fix))


@pytest.mark.parametrize(
    ("device", "meaning"), [("auto", ("auto", 0)), ("cuda:2", ("cuda", 2)), ("tensorrt", ("tensorrt", 0))]
)
def test_devices_are_read(device: str, meaning: tuple[str, int]) -> None:
    assert parse(device) == meaning


@pytest.mark.skipif(cuda_problem() is None, reason="this machine has a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_the_command_names_the_missing_piece_at_once_and_prints_nothing_else(shelf: Path, device: str) -> None:
    started = time.perf_counter()
    child = subprocess.run(
        [*COMMAND, "run", "tiny-bert", "card", "--device", device], capture_output=True, text=True, check=False
    )
    assert time.perf_counter() - started < 3
    assert child.returncode == 7
    assert child.stdout == ""
    hint = "run the command with --device cpu or --device auto"
    assert child.stderr == f"error: {device} cannot be used: {cuda_problem()}\nhint: {hint}\n"


def test_a_placement_in_words() -> None:
    assert str(Placement(asked="cpu", used="cpu", nodes={"CPU": 9})) == "cpu"
    found = Placement(asked="auto", used="cuda:0", nodes={"CUDA": 118, "CPU": 3})
    assert str(found) == "cuda:0 (118 nodes on CUDA, 3 nodes on CPU)"
    assert str(Placement(asked="auto", used="cpu", why="no driver")) == "cpu (auto: no driver)"


@pytest.mark.skipif(cuda_problem() is None, reason="this machine has a CUDA device")
def test_auto_says_why_it_took_the_cpu(shelf: Path) -> None:
    command = [*COMMAND, "run", "tiny-bert", "card"]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"1 input on cpu (auto: {cuda_problem()})\n" in child.stderr
    assert choose("auto").why == cuda_problem()
    found = Zoo().run("tiny-bert", "card").placement
    assert found is not None
    assert (found.asked, found.used, found.why) == ("auto", "cpu", cuda_problem())


@pytest.mark.skipif(cuda_problem() is None, reason="this machine has a CUDA device")
def test_nothing_is_pulled_for_a_device_that_is_not_there(shelf_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        Zoo(home=tmp_path / "empty", registry=shelf_file).session("tiny-bert", "cuda")
    assert not (tmp_path / "empty" / "models").exists()


def test_settings_of_a_device(tmp_path: Path) -> None:
    image = dict(providers("cuda:1", Settings(kind="image")))
    assert list(image) == CUDA
    assert image["CUDAExecutionProvider"]["device_id"] == "1"
    assert image["CUDAExecutionProvider"]["use_tf32"] == "0"
    assert image["CUDAExecutionProvider"]["cudnn_conv_algo_search"] == "HEURISTIC"
    fixed = dict(providers("cuda:0", Settings(kind="image", fixed=True)))["CUDAExecutionProvider"]
    assert (fixed["enable_cuda_graph"], fixed["cudnn_conv_algo_search"]) == ("1", "EXHAUSTIVE")
    shapes = {"pixels": ((1, 3, 8, 8), (32, 3, 8, 8), (32, 3, 8, 8))}
    settings = Settings(kind="image", engines=tmp_path / "engines", key="abc", shapes=shapes)
    engine = dict(providers("tensorrt:0", settings))["TensorrtExecutionProvider"]
    assert engine["trt_profile_max_shapes"] == "pixels:32x3x8x8"
    assert engine["trt_engine_cache_path"] == str(tmp_path / "engines")
    assert engine["trt_engine_cache_prefix"].startswith("abc-")
    assert (tmp_path / "engines").is_dir()


def cgroup(root: Path, lines: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("lines", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        # The smallest quota on the path to the root counts.
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000", "cpu.max": "max 100000"}, 2.0),
        # In a container the path is the host's, and its own group is the root.
        ("0::/docker/abc\n", {"cpu.max": "50000 100000"}, 0.5),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "300000", "cpu/x/cpu.cfs_period_us": "100000"}, 3.0),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, lines: str, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(cgroup(tmp_path, lines, files)) == quota


def test_no_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert cores() >= 1


@pytest.mark.parametrize("device", ["tensorrt", "tensorrt:1"])
def test_torch_has_no_tensorrt(device: str) -> None:
    with pytest.raises(UsageError, match="TensorRT only runs exported models"):
        choose_device(device)


def test_threads_are_what_was_asked_for(shelf: Path) -> None:
    with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
        Zoo().session("tiny-bert", "cpu", threads=0)
    session = Zoo().session("tiny-bert", "cpu", threads=1, spins=False)
    options = session._pipeline.body.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.gpu
def test_a_model_lies_on_cuda(shelf: Path) -> None:
    for name in ("tiny-bert", "tiny-lite"):
        placement = Zoo().session(name, "cuda").placement
        assert placement.used == "cuda:0"
        assert placement.nodes.get("CPU", 0) <= ON_CPU * sum(placement.nodes.values())
        assert placement.nodes["CUDA"] > 0
        assert Zoo().session(name, "auto").device == "cuda:0"


@pytest.mark.gpu
def test_recorded_kernels_answer_as_others(shelf: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (70, 90, 120, 3), dtype=np.uint8)
    plain, fixed = (Zoo().session("tiny-lite", "cuda", fixed=each) for each in (False, True))
    for _ in range(3):
        np.testing.assert_allclose(fixed.features(images), plain.features(images), atol=1e-3)


@pytest.mark.gpu
def test_engines_of_tensorrt_are_built_once(shelf: Path) -> None:
    from zoo.runtime.device import tensorrt_problem

    if (problem := tensorrt_problem()) is not None:
        pytest.skip(problem)
    home = Zoo().store.home
    first = Zoo().session("tiny-lite", "tensorrt").features([np.full((64, 64, 3), 9, np.uint8)])
    engines = sorted((home / "engines").glob("*.engine"))
    assert engines
    before = [engine.stat().st_mtime_ns for engine in engines]
    again = Zoo().session("tiny-lite", "tensorrt").features([np.full((64, 64, 3), 9, np.uint8)])
    assert [engine.stat().st_mtime_ns for engine in engines] == before
    np.testing.assert_array_equal(first, again)


@pytest.mark.gpu
def test_a_device_that_does_not_exist() -> None:
    import onnx

    one = onnx.helper.make_tensor_value_info("x", 1, [1])
    two = onnx.helper.make_tensor_value_info("y", 1, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [one], [two])
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    with pytest.raises(DeviceError):
        create_session(model.SerializeToString(), "cuda:99")
