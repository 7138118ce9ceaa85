"""`zoo run` and `zoo embed` compared with a bare ONNX Runtime loop and peers; the cost of a call, a start, a long run.

    python benchmarks/run.py --record
    python benchmarks/run.py --parts lite0,minilm --rounds 3 --items 500

The parts: `resnet50` and `lite0` (images), `minilm` (sentences), `costs` (a call, a cold start) and `memory`. The
loop, zoo and its peers are processes that take turns, round by round, on the same cores. The peers of images are
torchvision, timm and OpenVINO, each from files with its own best pipeline (run_files.py); those of sentences are
fastembed and sentence-transformers, on the same weights. Medians are printed as one JSON object, and `--record` writes
each part's section of RESULTS.md. The bare loop gets decoded, batched arrays (images) or batches of tokens by length
(sentences), which are made before its time begins, and the fastest of a few batch sizes. The rate of the whole command
includes its start.

Lite0 and MiniLM are pulled; ResNet-50 has random weights. Exports under `--work` are used again: remove them after a
change of the export. The peers' environments are made under `--peers`, as in inference.py.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import photos
import record
import run_tables as tables
from finetune import photo_folder, random_registry
from inference import versions
from inference_models import library_folder
from inference_systems import Bench, body, say
from sentences import sentences

from zoo import Bundle, Zoo, ZooError
from zoo.diagnostics.timing import Stopwatch
from zoo.runtime.session import Session
from zoo.schema import TextPreprocess
from zoo.system.cpu import cores

NAMES = {"resnet50": "resnet50.tv_in1k", "lite0": "efficientnet_lite0", "minilm": "all-minilm-l6-v2"}
#: The images of a turn, a multiple of every batch size; sentences are timed all together.
TURNS = {"resnet50": 128, "lite0": 512}
#: The images whose pixels the bare loop gets.
READY = 128
#: The side of the images; a hundred thousand larger ones would take too long.
SMALL = {"resize": 36, "crop": 32}
SIZES = {"texts": 100_000, "images": 100_000}
#: The least code that can answer: it imports both packages and makes a session of the same file.
COLD = "import onnxruntime, numpy, sys; onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"


class Material:
    """The inputs and the exports, made if they are missing."""

    def __init__(self, arguments: argparse.Namespace, bench: Bench) -> None:
        self.arguments, self.bench = arguments, bench
        self.folder = arguments.work.resolve() / "run"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.environment = {"ZOO_HOME": str(bench.home), "ZOO_DEVICE": "cpu"}
        self.photos = photo_folder(arguments.work.resolve(), arguments.items)
        self.texts = self._written("texts.json", json.dumps(sentences(arguments.items)))
        self.lines = self._written("texts.txt", "\n".join(sentences(arguments.items)) + "\n")
        paths = sorted(map(str, self.photos.rglob("*.jpg")))
        # In random order, so that a turn has images of every class.
        np.random.default_rng(0).shuffle(paths)
        self.paths = self._written("photos.json", json.dumps(paths))
        self._bundles: dict[str, Bundle] = {}

    def _written(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def bundle(self, part: str) -> Bundle:
        """The export of a part's model."""
        if part not in self._bundles:
            out = self.bench.work / f"run-{part}"
            registry = random_registry(self.bench.work / "registry", NAMES[part]) if part == "resnet50" else None
            is_there = (out / "zoo.json").exists()
            found = Bundle.open(out) if is_there else self.bench.export("run", part, NAMES[part], [()], registry)
            if found is None:
                raise SystemExit(f"{NAMES[part]} cannot be exported")
            self._bundles[part] = found
        return self._bundles[part]

    def small(self) -> Bundle:
        """Lite0 on images of 32 x 32 pixels."""
        sys.path.insert(0, str(record.ROOT))
        from tests.kit.upstream import ROWS

        name, row = "lite0-small", ROWS[NAMES["lite0"]]
        models = {name: {**row, "preprocess": {**row["preprocess"], **SMALL}}}
        registry = self._written("small.json", json.dumps({"schema_version": 1, "models": models}))
        return Zoo(home=self.bench.home, registry=registry).open(name)

    def once(self, kind: str, bundle: Bundle, **spec: Any) -> dict[str, Any]:
        """A measurement of run_once.py."""
        request = {"bundle": str(bundle.path), "photos": str(self.paths), "texts": str(self.texts), **spec}
        return record.timed(record.script("run_once.py", kind, json.dumps(request)), self.environment)[0]

    def start(self, system: str, part: str, python: str = sys.executable, **spec: Any) -> Stopwatch:
        """A process of run_peer.py."""
        request = {"kind": system, "threads": cores(), "facts": str(self.facts(part, system)), "warm": 0, **spec}
        script = "run_files.py" if system in tables.PEERS else "run_peer.py"
        return Stopwatch(request, [python, str(record.HERE / script)])

    def facts(self, part: str, system: str) -> Path:
        """The file for the settings that a process chose."""
        return self.folder / f"{part}-{system}.json"


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts and return the printed summary."""
    measure: dict[str, Callable[[Material], dict[str, Any]]] = {
        "resnet50": lambda material: images(material, "resnet50"),
        "lite0": lambda material: images(material, "lite0"),
        "minilm": texts, "costs": costs, "memory": memory,
    }  # fmt: skip
    found: dict[str, Any] = {}
    with ExitStack() as children:
        material = Material(arguments, Bench(arguments, children))
        for part in arguments.parts.split(","):
            if part not in measure:
                raise SystemExit(f"--parts {part} is none of {', '.join(measure)}")
            say(f"{part}, load {os.getloadavg()[0]:.1f}")
            before = round(os.getloadavg()[0], 1)
            found[part] = {**measure[part](material), "load": before}
    return {"parts": found, "rounds": arguments.rounds, "items": arguments.items, "machine": record.machine()}


def images(material: Material, part: str) -> dict[str, Any]:
    """Files to answers compared with the bare loop, and the time of each stage."""
    bundle = material.bundle(part)
    session = Session(bundle, "cpu")
    cut = bundle.manifest.cut or "pixels"
    feeds = material.folder / f"{part}-pixels.npy"
    paths = json.loads(material.paths.read_text(encoding="utf-8"))[:READY]
    np.save(feeds, np.concatenate([arrays[cut] for _, arrays in session.stream(paths, [cut, "features"])]))
    del session
    graph = body(bundle, material.folder / f"{part}-body.onnx")
    warm = max(16, TURNS[part] // 8)
    with ExitStack() as children:
        running = {
            "bare": material.start("bare_images", part, body=str(graph), feeds=str(feeds), warm=warm),
            "zoo": material.start("zoo_images", part, bundle=str(bundle.path), photos=str(material.paths), warm=warm),
            **from_files(material, part, bundle, graph, warm),
        }
        for child in running.values():
            children.enter_context(child)
        rates = rounds(material, running, TURNS[part])
    command = record.zoo("run", str(bundle.path), str(material.photos / "*" / "*" / "*.jpg"))
    _, cost = record.timed(command, material.environment)
    return {
        "rates": rates,
        "bare": chosen(material, part, "bare_images"),
        **{name: chosen(material, part, name) for name in running if name in tables.PEERS},
        "command": {**cost, "rate": material.arguments.items / cost["wall"]},
        "stages": material.once("stages", bundle, count=READY),
        "turn": TURNS[part],
        "versions": versions(material.bench),
    }


def from_files(material: Material, part: str, bundle: Bundle, graph: Path, warm: int) -> dict[str, Stopwatch]:
    """The peers that read the same files; one that cannot be installed or started is left out with the reason."""
    found = {}
    for name in tables.PEERS if material.arguments.from_files else ():
        try:
            python = material.bench.python("openvino") if name == "openvino" else sys.executable
            found[name] = material.start(
                name, part, python, network=part, photos=str(material.paths), size=photos.SIZE, body=str(graph),
                steps=msgspec.to_builtins(bundle.manifest.preprocess), warm=warm,
            )  # fmt: skip
        except ZooError as error:
            say(f"{part}: {name} is left out: {error}")
    return found


def texts(material: Material) -> dict[str, Any]:
    """Sentences to a file of vectors compared with the bare loop, fastembed and sentence-transformers."""
    bundle, part = material.bundle("minilm"), "minilm"
    preprocess = bundle.manifest.preprocess
    assert isinstance(preprocess, TextPreprocess)
    weights = Zoo(home=material.bench.home).pull(NAMES[part])
    folder, count = material.folder, material.arguments.items
    graph = body(bundle, folder / "minilm-body.onnx")
    vectors = {name: folder / f"minilm-{name}.npy" for name in tables.TEXTS if name != "bare"}
    shared: dict[str, Any] = {"texts": str(material.texts)}
    starts: dict[str, Callable[[], Stopwatch]] = {
        "bare": lambda: material.start(
            "bare_texts", part, body=str(graph), tokenizer=str(bundle.path / preprocess.tokenizer),
            max_length=preprocess.max_length, **shared,
        ),
        "zoo": lambda: material.start(
            "zoo_embed", part, bundle=str(bundle.path), out=str(folder / "timed.npy"), save=str(vectors["zoo"]),
            **shared,
        ),
        "fastembed": lambda: material.start(
            "fastembed", part, material.bench.python("fastembed"), dim=bundle.manifest.dim,
            model=str(fastembed_folder(bundle, weights, folder / "fastembed")), save=str(vectors["fastembed"]),
            **shared,
        ),
        "sentence-transformers": lambda: material.start(
            "library", part, material.bench.python("sentence"), save=str(vectors["sentence-transformers"]),
            model=str(library_folder(weights, bundle, folder / "library")), **shared,
        ),
    }  # fmt: skip
    with ExitStack() as children:
        running = {name: children.enter_context(start()) for name, start in starts.items()}
        rates = rounds(material, running, count)
    out = folder / "command.npy"
    for path in folder.glob("command.npy*"):
        path.unlink()
    command = record.zoo("embed", str(bundle.path), str(material.lines), "-o", str(out))
    _, cost = record.timed(command, material.environment)
    return {
        "rates": rates,
        "started": {name: child.started for name, child in running.items()},
        "cosines": near(vectors),
        "bare": chosen(material, part, "bare_texts"),
        "fastembed": chosen(material, part, "fastembed"),
        "command": {**cost, "rate": count / cost["wall"]},
        "stages": material.once("stages", bundle, count=count),
        "versions": versions(material.bench),
    }


def costs(material: Material) -> dict[str, Any]:
    """A call with one item compared with the bare sessions, and a cold start with a bare one."""
    photo = json.loads(material.paths.read_text(encoding="utf-8"))[0]
    text = sentences(1)[0]
    found: dict[str, Any] = {"overhead": {}, "cold": {}, "torch": {}}
    for part in NAMES:
        bundle, item = material.bundle(part), text if part == "minilm" else photo
        ours = record.zoo("run", str(bundle.path), item)
        bare = [sys.executable, "-c", COLD, str(bundle.path / "model.onnx")]
        pairs: list[tuple[float, float]] = []
        for number in range(material.arguments.rounds + 1):
            walls = tuple(record.timed(each, material.environment)[1]["wall"] for each in (ours, bare))
            if number:
                pairs.append((walls[0], walls[1]))
        middle = [median(each) for each in zip(*pairs, strict=True)]
        found["cold"][part] = {
            "ours": middle[0], "bare": middle[1], "ratio": median(one / other for one, other in pairs),
        }  # fmt: skip
        found["torch"][part] = imports_torch(ours, material.environment)
        found["overhead"][part] = material.once("overhead", bundle, count=60 if part == "resnet50" else 200)
    return found


def memory(material: Material) -> dict[str, Any]:
    """The memory above the model for 100,000 sentences and for 100,000 small images."""
    out = str(material.folder / "memory.npy")
    found = {}
    for name, bundle in (("images", material.small()), ("texts", material.bundle("minilm"))):
        found[name] = material.once("memory", bundle, count=material.arguments.long or SIZES[name], out=out)
        say(f"{name}: {found[name]}")
    return found


def rounds(material: Material, running: dict[str, Stopwatch], count: int) -> dict[str, list[float]]:
    """Items per second of each system, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in running}
    for number in range(material.arguments.rounds):
        # The order changes, so that other load on the machine affects all systems.
        order = list(running)[:: 1 if number % 2 else -1]
        for name in order:
            rates[name].append(count / running[name].time(count, 0)[0])
        say(f"round {number + 1}: " + ", ".join(f"{name} {rates[name][-1]:.1f}/s" for name in running))
    return rates


def chosen(material: Material, part: str, system: str) -> Any:
    """The settings that a process chose."""
    return json.loads(material.facts(part, system).read_text(encoding="utf-8"))


def near(vectors: dict[str, Path]) -> dict[str, float]:
    """For each peer the smallest cosine between its vector of a sentence and zoo's."""
    exact = np.load(vectors["zoo"])
    found = {}
    for name, path in vectors.items():
        other = np.load(path)
        sizes = np.linalg.norm(other, axis=1) * np.linalg.norm(exact, axis=1)
        found[name] = float(((other * exact).sum(1) / sizes).min())
    return found


def fastembed_folder(bundle: Bundle, weights: Path, folder: Path) -> Path:
    """A folder with the exported graph and the other files that fastembed reads."""
    library_folder(weights, bundle, folder)
    (folder / "model.onnx").write_bytes(bundle.read_model())
    (folder / "model.safetensors").unlink()
    return folder


def imports_torch(command: list[str], environment: dict[str, str]) -> bool:
    """Whether a command of this interpreter imports torch."""
    traced = [command[0], "-X", "importtime", *command[1:]]
    done = subprocess.run(traced, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return any(line.split("|")[-1].strip().split(".")[0] == "torch" for line in done.stderr.splitlines() if "|" in line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default="resnet50,lite0,minilm,costs,memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=2000, help="images, and sentences, of a command")
    parser.add_argument("--no-peers", dest="from_files", action="store_false", help="of images, time no peers")
    parser.add_argument("--long", type=int, default=0, help="inputs of the part memory; a hundred thousand by default")
    record.add_folder_options(parser)
    options = parser.parse_args()
    options.systems = ""
    os.environ.pop("ZOO_HOME", None)
    result = main(options)
    if options.record:
        for each in result["parts"]:
            record.write_section(tables.TITLES[each], tables.markdown(result, each))
    print(json.dumps(result))
