"""From a pretrained backbone to a checked ONNX model for your task.

`zoo.Zoo().run("./pets", ["cat.jpg"])` returns labels with scores. Plugin authors import zoo.backbone, zoo.torchkit,
zoo.source, zoo.bridge and zoo.hookspecs (docs/plugins.md).
"""

import os

# Official builds of onnxruntime and huggingface_hub report usage by default. They read these variables when they are
# imported, so set them before any module of zoo can import either.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from msgspec import to_builtins as to_plain

from zoo.api import Zoo
from zoo.bundle import Bundle
from zoo.data.inputs import Input, Inputs
from zoo.data.items import TextPair
from zoo.data.labels import label_names, ranks, without_head
from zoo.errors import (
    AccessError,
    DataError,
    DeviceError,
    DivergedError,
    GateError,
    IntegrityError,
    MissingExtraError,
    NetworkError,
    NotFoundError,
    OfflineError,
    OutOfMemoryError,
    PluginError,
    RegistryError,
    UnknownEntryError,
    UnknownPluginError,
    UnpinnedError,
    UsageError,
    ZooError,
)
from zoo.evaluation.compare_plot import check_plot, write_plot
from zoo.extras import version
from zoo.options import BenchOptions, CompareOptions, DataOptions, FinetuneOptions, Variant, parse_head
from zoo.outputs.predictions import check_predictions, write_predictions, write_suspects
from zoo.progress import Bar as ProgressBar
from zoo.progress import Progress
from zoo.results import (
    Answer,
    Answered,
    Answers,
    Benchmark,
    Check,
    ColdStart,
    Compared,
    Comparison,
    Embedded,
    Evaluation,
    Failure,
    Outcome,
    Placement,
    Ranking,
    Row,
    RunResult,
    Timing,
    Verdict,
    to_json,
)
from zoo.schema import Entry, Manifest, Metrics, PretrainedHead, Task

__all__ = [
    "AccessError",
    "Answer",
    "Answered",
    "Answers",
    "BenchOptions",
    "Benchmark",
    "Bundle",
    "Check",
    "ColdStart",
    "CompareOptions",
    "Compared",
    "Comparison",
    "DataError",
    "DataOptions",
    "DeviceError",
    "DivergedError",
    "Embedded",
    "Entry",
    "Evaluation",
    "Failure",
    "FinetuneOptions",
    "GateError",
    "Input",
    "Inputs",
    "IntegrityError",
    "Manifest",
    "Metrics",
    "MissingExtraError",
    "NetworkError",
    "NotFoundError",
    "OfflineError",
    "OutOfMemoryError",
    "Outcome",
    "Placement",
    "PluginError",
    "PretrainedHead",
    "Progress",
    "ProgressBar",
    "Ranking",
    "RegistryError",
    "Row",
    "RunResult",
    "Task",
    "TextPair",
    "Timing",
    "UnknownEntryError",
    "UnknownPluginError",
    "UnpinnedError",
    "UsageError",
    "Variant",
    "Verdict",
    "Zoo",
    "ZooError",
    "check_plot",
    "check_predictions",
    "label_names",
    "parse_head",
    "ranks",
    "to_json",
    "to_plain",
    "version",
    "without_head",
    "write_plot",
    "write_predictions",
    "write_suspects",
]
