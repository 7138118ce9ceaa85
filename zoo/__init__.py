"""From a pretrained backbone to a checked ONNX model for your task.

`zoo.Zoo().run("./pets", ["cat.jpg"])` returns labels with scores. Plugin authors import zoo.backbone, zoo.torchkit,
zoo.source, zoo.bridge and zoo.hookspecs (docs/plugins.md).
"""

import os

# Official builds of onnxruntime and huggingface_hub report usage by default. They read these variables when they are
# imported, so set them before any module of zoo can import either.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import msgspec

# `X as X` marks a public name for type checkers and linters.
from zoo import progress
from zoo.api import Zoo as Zoo
from zoo.api import version as version
from zoo.bundle import Bundle as Bundle
from zoo.data.inputs import Input as Input
from zoo.data.inputs import Inputs as Inputs
from zoo.errors import AccessError as AccessError
from zoo.errors import DataError as DataError
from zoo.errors import DeviceError as DeviceError
from zoo.errors import DivergedError as DivergedError
from zoo.errors import GateError as GateError
from zoo.errors import IntegrityError as IntegrityError
from zoo.errors import MissingExtraError as MissingExtraError
from zoo.errors import NetworkError as NetworkError
from zoo.errors import NotFoundError as NotFoundError
from zoo.errors import OfflineError as OfflineError
from zoo.errors import OutOfMemoryError as OutOfMemoryError
from zoo.errors import PluginError as PluginError
from zoo.errors import RegistryError as RegistryError
from zoo.errors import UnknownEntryError as UnknownEntryError
from zoo.errors import UnknownPluginError as UnknownPluginError
from zoo.errors import UnpinnedError as UnpinnedError
from zoo.errors import UsageError as UsageError
from zoo.errors import ZooError as ZooError
from zoo.options import BenchOptions as BenchOptions
from zoo.options import FinetuneOptions as FinetuneOptions
from zoo.options import Variant as Variant
from zoo.options import parse_head as parse_head
from zoo.outputs.predictions import check_predictions as check_predictions
from zoo.outputs.predictions import write_predictions as write_predictions
from zoo.progress import Progress as Progress
from zoo.results import Answer as Answer
from zoo.results import Answered as Answered
from zoo.results import Answers as Answers
from zoo.results import Benchmark as Benchmark
from zoo.results import Check as Check
from zoo.results import ColdStart as ColdStart
from zoo.results import Embedded as Embedded
from zoo.results import Evaluation as Evaluation
from zoo.results import Failure as Failure
from zoo.results import Placement as Placement
from zoo.results import Ranking as Ranking
from zoo.results import Row as Row
from zoo.results import RunResult as RunResult
from zoo.results import Timing as Timing
from zoo.results import Verdict as Verdict
from zoo.results import to_json as to_json
from zoo.schema import Entry as Entry
from zoo.schema import Manifest as Manifest
from zoo.schema import Metrics as Metrics
from zoo.schema import Outcome as Outcome
from zoo.schema import Task as Task

ProgressBar = progress.Bar
to_plain = msgspec.to_builtins
