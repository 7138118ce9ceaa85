"""Creates ONNX Runtime sessions with the settings of their device, and checks that they run on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from zoo.errors import IntegrityError
from zoo.graph import external_data
from zoo.runtime.cuda import PROVIDER, preload
from zoo.runtime.device import PROVIDERS, onnxruntime, parse, placed, silenced
from zoo.system.cpu import cores

if TYPE_CHECKING:
    from zoo.graph.external_data import Bytes

#: The files of an optimised graph: the model, and its weights in the layout of the CPU's kernels.
BODY, NUMBERS = "body.onnx", "body.bin"


class Graphs(NamedTuple):
    """The graphs of a bundle.

    body: the model without preprocessing, as bytes or as the file of an optimised graph.
    prefix: the graph that turns images into pixels; empty if `zoo.runtime.pixels` computes the same.
    tables: the memory-mapped files of the external data, by name.
    """

    body: bytes | Path
    prefix: bytes = b""
    tables: "Mapping[str, Bytes] | None" = None


class Settings(NamedTuple):
    """The settings of a session.

    spins: waiting threads spin; False lets them sleep, so that other threads can compute.
    kind: the kind of the model's input.
    fixed: every run has the same shapes, so that CUDA can record its kernels once.
    engines, key, shapes: the folder of TensorRT's engines, the prefix of their names, and the shapes of their inputs.
    optimised: the folder to which the optimised graph is written.
    """

    threads: int | None = None
    spins: bool = True
    kind: Literal["image", "text"] = "text"
    fixed: bool = False
    engines: Path | None = None
    key: str = "zoo"
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {}
    optimised: Path | None = None


def create_session(
    model: bytes | Path,
    device: str,
    threads: int | None = None,
    tables: "Mapping[str, Bytes] | None" = None,
    *,
    spins: bool = True,
    settings: Settings | None = None,
) -> Any:
    """An InferenceSession of `model` that really runs on `device` (`cpu`, `cuda:N` or `tensorrt:N`).

    model: a graph, or the path of a graph that was already optimised for this device; such a file is loaded unchanged.
    tables: the contents of the graph's external data files, by name; the runtime itself opens no file.
    settings: used instead of `threads` and `spins`.

    The session's `nodes` count the graph's nodes by provider. Raises DeviceError if the device's provider was dropped
    or many nodes run on the CPU, IntegrityError if the runtime refuses the graph or `tables` lacks a file.
    """
    ort = onnxruntime()
    settings = settings or Settings(threads, spins)
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads or cores()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not settings.spins:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    files: list[Bytes] = []
    if isinstance(model, Path):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        if settings.optimised is not None:
            _write_optimised_to(options, settings.optimised)
        files = _add_tables(options, model, tables or {})
    source = str(model) if isinstance(model, Path) else model
    try:
        if device == "cpu":
            session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        else:
            preload(ort)
            with silenced():
                session = ort.InferenceSession(source, options, providers=providers(device, settings))
    except Exception as error:  # onnxruntime's exceptions have no common base class of their own
        reason = str(error).splitlines()[0]
        raise IntegrityError(f"ONNX Runtime refuses the model: {reason}", hint="export it again") from error
    session.nodes = placed(device, session.get_providers(), session.get_provider_graph_assignment_info())
    session.tables = files
    return session


def write_optimised(model: bytes | Path, device: str, settings: Settings, folder: Path) -> None:
    """Write the optimised graph to `folder`, with a session that is then closed.

    Raises the errors of `create_session`.
    """
    create_session(model, device, settings=settings._replace(threads=1, spins=False, optimised=folder))


def _write_optimised_to(options: Any, folder: Path) -> None:
    options.optimized_model_filepath = str(folder / BODY)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", NUMBERS)
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    # The weights are written in the kernels' layout: they can then be memory-mapped and need no copy.
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")


def _add_tables(options: Any, model: bytes, tables: "Mapping[str, Bytes]") -> "list[Bytes]":
    """Add the external data of `model` to the session's options; returns the files, which must outlive the session."""
    names = sorted({tensor.file for tensor in external_data.references(model)})
    if missing := [name for name in names if name not in tables]:
        raise IntegrityError(
            f"the model needs the file {missing[0]}, which was not given", hint="write the bundle again"
        )
    files = [tables[name] for name in names]
    if files:
        # Without this entry the runtime would copy every table.
        options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
        options.add_external_initializers_from_files_in_memory(names, files, [len(file) for file in files])
    return files


def providers(device: str, settings: Settings) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's providers for a device, best first, each with its options."""
    kind, index = parse(device)
    options = {"TensorrtExecutionProvider": _tensorrt(settings), PROVIDER: _cuda(settings)}
    for each in options.values():
        each["device_id"] = str(index)
    return [(name, options.get(name, {})) for name in PROVIDERS[kind]]


def _cuda(settings: Settings) -> dict[str, str]:
    # TF32 is on by default; its mantissa of ten bits is less exact than the CPU's float32.
    options = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    if settings.kind == "image":
        # The default, an exhaustive search, is repeated for each new shape, so it only pays if there is a single shape.
        options["cudnn_conv_algo_search"] = "EXHAUSTIVE" if settings.fixed else "HEURISTIC"
        options["cudnn_conv_use_max_workspace"] = "1"
    else:
        options["cudnn_conv_algo_search"] = "DEFAULT"
    if settings.fixed:
        options["enable_cuda_graph"] = "1"
    return options


def _tensorrt(settings: Settings) -> dict[str, str]:
    options = {"trt_cuda_graph_enable": "1"} if settings.fixed else {}
    if settings.shapes:
        for index, name in enumerate(("min", "opt", "max")):
            sides = {tensor: "x".join(map(str, shapes[index])) for tensor, shapes in settings.shapes.items()}
            options[f"trt_profile_{name}_shapes"] = ",".join(f"{tensor}:{side}" for tensor, side in sides.items())
    if settings.engines is not None:
        settings.engines.mkdir(parents=True, exist_ok=True)
        # TensorRT adds the GPU's architecture to the names. Another release of TensorRT refuses an engine and builds a
        # new one.
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(settings.engines),
            "trt_engine_cache_prefix": f"{settings.key}-{onnxruntime().__version__}",
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(settings.engines),
        }
    return options
