"""An ONNX Runtime session with the settings of its device, which is checked to run there."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from zoo.errors import IntegrityError
from zoo.graph import external_data
from zoo.runtime.cuda import preload
from zoo.runtime.device import PROVIDERS, onnxruntime, parse, placed, silenced
from zoo.system.cpu import cores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zoo.graph.external_data import Bytes

#: The files of an optimised graph: the model, and its weights as the CPU's kernels want them.
BODY, NUMBERS = "body.onnx", "body.bin"


class Settings(NamedTuple):
    """How a session computes. Without `spins` its threads sleep while they wait: others compute beside them.

    `kind` is what the model reads. `fixed` says that every run has the same shapes, so that CUDA can record its kernels
    once. TensorRT keeps its engines in `engines` under names that begin with `key`, for inputs in `shapes`. The
    optimised graph is written to the folder `optimised` (zoo.runtime.optimised_graphs).
    """

    threads: int | None = None
    spins: bool = True
    kind: Literal["picture", "text"] = "text"
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
    """An InferenceSession of `model` that really runs on `device` (`cpu`, `cuda:N` or `tensorrt:N`), or an error.

    A path is that of a graph which was optimised, by this runtime on this device: it is taken as it is. `tables` are
    the files of its external data by name (zoo.graph.external_data.files); the runtime itself opens none. `settings`
    stand for `threads` and `spins`, and more. Its `nodes` say on which provider how many nodes of the graph lie. Raises
    DeviceError when the provider was dropped or many nodes lie on the CPU, IntegrityError when the runtime refuses the
    graph or a file of its external data was not given.
    """
    ort = onnxruntime()
    settings = settings or Settings(threads, spins)
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads or cores()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not settings.spins:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if isinstance(model, Path):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif settings.optimised is not None:
        _keep_optimised(options, settings.optimised)
    outside = [] if isinstance(model, Path) else sorted({tensor.file for tensor in external_data.references(model)})
    if missing := [name for name in outside if name not in (tables or {})]:
        raise IntegrityError(
            f"a part of the model lies in {missing[0]}, which was not given", hint="write the bundle again"
        )
    files = [tables[name] for name in outside] if tables else []
    if files:
        # Without this entry every table would be copied; with it they must outlive the session.
        options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
        options.add_external_initializers_from_files_in_memory(outside, files, [len(file) for file in files])
    source = str(model) if isinstance(model, Path) else model
    try:
        if device == "cpu":
            session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        else:
            preload(ort)
            with silenced():
                session = ort.InferenceSession(source, options, providers=providers(device, settings))
    except Exception as error:  # onnxruntime's exceptions have no common root of their own
        reason = str(error).splitlines()[0]
        raise IntegrityError(f"ONNX Runtime refuses the model: {reason}", hint="export it again") from error
    session.nodes = placed(device, session.get_providers(), session.get_provider_graph_assignment_info())
    session.tables = files
    return session


def write_optimised(model: bytes | Path, device: str, settings: Settings, folder: Path) -> None:
    """Write the optimised graph to a folder, by a session that is then gone. Raises as `create_session` does."""
    create_session(model, device, settings=settings._replace(threads=1, spins=False, optimised=folder))


def _keep_optimised(options: Any, folder: Path) -> None:
    """Have the optimised graph written, its numbers beside it and laid out as the kernels want them."""
    options.optimized_model_filepath = str(folder / BODY)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", NUMBERS)
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")


def providers(device: str, settings: Settings) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's providers for a device, best first, each with its options."""
    kind, index = parse(device)
    options = {
        "TensorrtExecutionProvider": _tensorrt(settings),
        "CUDAExecutionProvider": _cuda(settings),
        "CPUExecutionProvider": {},
    }
    where = {"device_id": str(index)}
    return [(name, options[name] | ({} if name.startswith("CPU") else where)) for name in PROVIDERS[kind]]


def _cuda(settings: Settings) -> dict[str, str]:
    # As exact as the CPU: TF32 has ten bits of mantissa, and it is on by default.
    options = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    if settings.kind == "picture":
        # The exhaustive search, which is the default, is made anew for each shape: worth it for one.
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
        for place, name in enumerate(("min", "opt", "max")):
            sides = {tensor: "x".join(map(str, shapes[place])) for tensor, shapes in settings.shapes.items()}
            options[f"trt_profile_{name}_shapes"] = ",".join(f"{tensor}:{side}" for tensor, side in sides.items())
    if settings.engines is not None:
        settings.engines.mkdir(parents=True, exist_ok=True)
        # TensorRT itself puts the GPU's architecture into the names; another release refuses and builds anew.
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(settings.engines),
            "trt_engine_cache_prefix": f"{settings.key}-{onnxruntime().__version__}",
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(settings.engines),
        }
    return options


class Graphs(NamedTuple):
    """What a session is made of: the body, bytes or the file of an optimised one; what prepares a picture for it.

    `tables` are the files of its external data, mapped.
    """

    body: bytes | Path
    prefix: bytes = b""
    tables: "Mapping[str, Bytes] | None" = None
