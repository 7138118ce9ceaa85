"""Times one system in its own process: `python -m zoo.diagnostics.timing`.

Each system has its own process, because threads of two runtimes in one process wait for each other. The first line of
JSON describes the system (`System`); each further line has a batch size and a duration. Answers are lines of JSON too.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from zoo.bundle import HEAD, Bundle
from zoo.errors import UsageError, ZooError, brief
from zoo.export import trunk
from zoo.graph import edit, external_data, head
from zoo.runtime.device import onnxruntime
from zoo.runtime.ort import create_session
from zoo.schema import FEATURES, PRETRAINED, Entry
from zoo.system.cpu import cores
from zoo.system.process import Child, EndedError, Parent, python
from zoo.torchkit import TorchBackbone, positional

if TYPE_CHECKING:
    import torch

    from zoo.backbone import Backbone

    #: Runs the system on the given number of items.
    Call: TypeAlias = Callable[[int], object]

#: The side of the two square matrices whose product measures the machine's peak speed.
SIDE = 2048
#: A program that runs a graph once, using only numpy and ONNX Runtime.
COLD_START_SCRIPT = """
import sys
import numpy
import onnxruntime
model, feeds, threads, device = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
providers = ["CPUExecutionProvider"]
if device != "cpu":
    onnxruntime.preload_dlls()
    providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.partition(":")[2]}))
session = onnxruntime.InferenceSession(model, options, providers=providers)
session.run(None, dict(numpy.load(feeds)))
print("{}", flush=True)
"""


class System(msgspec.Struct, frozen=True, kw_only=True):
    """A system to time: a bundle's graph from `cut` on (or `whole`), its torch module, or a matrix product (`peak`).

    `feeds` is an .npz file with the inputs of the largest batch. `entry` and `weights` are for torch.
    """

    kind: Literal["graph", "whole", "torch", "peak"]
    bundle: str = ""
    device: str = "cpu"
    threads: int | None = None
    feeds: str = ""
    entry: Entry | None = None
    weights: str = ""
    channels_last: bool = False


class Stopwatch(Child):
    """The process of a system. It is ready when the constructor returns; `started` are the seconds that this took.

    `system` is the first line that is sent. `command` starts another program with the same protocol.
    """

    def __init__(self, system: object, command: Sequence[str] = ()) -> None:
        began = time.perf_counter()
        super().__init__(command or python("-m", "zoo.diagnostics.timing"), env=_environment())
        try:
            self._ask(system)
        except BaseException:
            self.close()
            raise
        self.started = time.perf_counter() - began

    def time(self, batch: int, seconds: float) -> list[float]:
        """Seconds of each call with `batch` items; calls are repeated for `seconds`, with at least one call."""
        found: list[float] = self._ask({"batch": batch, "seconds": seconds})["times"]
        return found

    def _ask(self, request: object) -> Any:
        try:
            return self.ask(request).data
        except EndedError as ended:
            raise ZooError(
                f"the timed process ended with exit code {ended.code}", hint="there may not be enough memory"
            ) from ended


def _environment() -> dict[str, str]:
    return {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}


def cold_start(model: Path, feeds: Path, threads: int, device: str) -> float:
    """Seconds from the start of a process to its first answer, with only numpy and ONNX Runtime."""
    began = time.perf_counter()
    command = python("-c", COLD_START_SCRIPT, str(model), str(feeds), str(threads), device)
    with tempfile.TemporaryFile() as errors, Child(command, env=_environment(), stderr=errors.fileno()) as child:
        try:
            child.receive()
        except EndedError as ended:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            reason = brief(lines[-1]) if lines else "no error message"
            message = f"a new process cannot run {model}: {reason}"
            raise ZooError(message, hint="zoo doctor may find the cause") from ended
        return time.perf_counter() - began


def serve() -> None:
    """Run the child process: load a system, then answer requests with the times of its calls until the parent ends."""
    parent = Parent()
    try:
        message = parent.receive()
        assert message is not None
        call = prepare(msgspec.convert(message.data, System))
        call(1)
        parent.send({})
        while (message := parent.receive()) is not None:
            parent.send({"times": measure(call, **message.data)})
    except ZooError as error:
        parent.fail(error)
    except Exception as error:  # errors of runtimes and families have no common base class
        if os.environ.get("ZOO_DEBUG"):
            raise
        problem = f"the timed system fails: {type(error).__name__}: {brief(str(error))}"
        parent.fail(ZooError(problem, hint="zoo --debug shows where"))


def measure(call: "Call", batch: int, seconds: float) -> list[float]:
    """Seconds of each call that starts within `seconds` (at least one call); a first call is not counted."""
    call(batch)
    times: list[float] = []
    began = time.perf_counter()
    while not times or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call(batch)
        times.append(time.perf_counter() - start)
    return times


def prepare(system: System) -> "Call":
    """Load the system and return the function to time. Raises the errors of its runtime or family."""
    import numpy as np

    if system.kind == "peak":
        return _peak(system)
    bundle = Bundle.open(Path(system.bundle))
    with np.load(system.feeds) as stored:
        feeds = {name: stored[name] for name in stored}
    if system.kind == "torch":
        return _torch(bundle, system, feeds)
    return _graph(bundle, system, feeds)


def _graph(bundle: Bundle, system: System, feeds: dict[str, Any]) -> "Call":
    import onnx

    data = bundle.read_model()
    tables = external_data.files(data, bundle.map)
    wanted = [bundle.manifest.outputs[-1].name]
    if system.kind == "graph" and bundle.manifest.cut:
        data = edit.extract(onnx.load_from_string(data), [bundle.manifest.cut], wanted).SerializeToString()
    session = create_session(data, system.device, system.threads, tables)
    return lambda batch: session.run(wanted, {name: array[:batch] for name, array in feeds.items()})


def _peak(system: System) -> "Call":
    """A call that multiplies float32 matrices on the device; the second matrix is a constant, like weights."""
    import numpy as np
    from onnx import numpy_helper, parser

    draw = np.random.default_rng(0)
    left, right = (draw.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    model = parser.parse_model(f"""<ir_version: {edit.IR_VERSION}, opset_import: ["" : {edit.OPSET}]>
        peak (float[{SIDE}, {SIDE}] a) => (float[{SIDE}, {SIDE}] c) {{ c = MatMul(a, b) }}""")
    model.graph.initializer.append(numpy_helper.from_array(right, "b"))
    session = create_session(model.SerializeToString(), system.device, system.threads)
    kind, _, index = system.device.partition(":")
    binding = session.io_binding()
    binding.bind_ortvalue_input("a", onnxruntime().OrtValue.ortvalue_from_numpy(left, kind, int(index or 0)))
    binding.bind_output("c", kind, int(index or 0))
    return lambda batch: session.run_with_iobinding(binding)


def _torch(bundle: Bundle, system: System, feeds: dict[str, Any]) -> "Call":
    import torch

    from zoo.plugin.manager import Plugins

    assert system.entry is not None
    torch.set_num_threads(system.threads or cores())
    # The plugin's class is loaded in this process, because the network must run here.
    backbone = Plugins().backbone(system.entry.family)(system.entry, Path(system.weights))
    layout = torch.channels_last if system.channels_last else torch.contiguous_format
    module = torch_module(bundle, backbone).to(system.device).to(memory_format=layout)
    tensors = [torch.from_numpy(feeds[spec.name]) for spec in bundle.manifest.lineage.entry.inputs]

    def call(batch: int) -> object:
        with torch.inference_mode():
            given = [tensor[:batch].to(system.device).contiguous(memory_format=layout) for tensor in tensors]
            return module(*given).cpu()

    return call


def torch_module(bundle: Bundle, backbone: "Backbone") -> "torch.nn.Module":
    """The bundle's model as a torch module: the family's module, with tuned stages and head if there are any.

    Raises UsageError for a family that is not written in torch.
    """
    from torch import nn

    if not isinstance(backbone, TorchBackbone):
        raise UsageError(f"the family {backbone.family} has no torch module", hint="leave --against out")
    manifest = bundle.manifest
    is_pretrained = manifest.head == PRETRAINED
    features = backbone.whole if is_pretrained else backbone.module
    if manifest.unfrozen:
        bundle.check(trunk.TAIL_FILE)
        cut = trunk.cut_at(backbone, manifest.unfrozen)
        tuned = list(trunk.tail(backbone, cut))
        trunk.load_tail(bundle.path / trunk.TAIL_FILE, tuned)
        names = [spec.name for spec in backbone.entry.inputs]
        features = positional([*backbone.stages()[:cut], *tuned], names, [FEATURES])
    top = _head(bundle) if manifest.head and not is_pretrained else nn.Identity()

    class TimedModule(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.top = features, top

        def forward(self, *given: "torch.Tensor") -> "torch.Tensor":
            found = self.features(*given)
            # A head that came with the weights gives (features, scores).
            answer: torch.Tensor = self.top(found[is_pretrained] if isinstance(found, tuple) else found)
            return answer

    return TimedModule().eval().requires_grad_(False)


def _head(bundle: Bundle) -> "torch.nn.Module":
    import torch
    from torch import nn

    bundle.check(HEAD)
    modules: list[nn.Module] = []
    for index, (weight, bias) in enumerate(head.load(bundle.path / HEAD)):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
        modules += [nn.ReLU(), linear] if index else [linear]
    ends = {"softmax": nn.Softmax(-1), "sigmoid": nn.Sigmoid(), "identity": nn.Identity()}
    return nn.Sequential(*modules, ends[bundle.manifest.activation or "softmax"])


if __name__ == "__main__":
    serve()
