"""The shipped rows on loopback: the same repositories, commits and paths, with random weights.

Files are made in the layout that upstream publishes, by upstream's own classes, when a test first asks for a row. Every
source of a row is served at its URL's path on another host: `hf://` by the small Hub, `https://` by a web server.
"""

import hashlib
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock

from tests.kit.hub import FakeHub, HubRepo
from tests.kit.libraries import spread
from tests.kit.libraries import write_tokenizer as write_files
from tests.kit.models import TINY, write_bert, write_tokenizer
from tests.kit.servers import Data, Loopback, whole
from zoo.data.samples import FOLDER
from zoo.registry.registry import builtin_registry_path

if TYPE_CHECKING:
    import torch

ROWS: dict[str, dict[str, Any]] = yaml.safe_load(builtin_registry_path().read_text(encoding="utf-8"))["models"]
#: Suffixes of the files that the Hub keeps in LFS, and so serves from its other host.
LARGE = (".safetensors", ".bin")
#: The vocabulary of the text encoders, which is much smaller than the published ones.
VOCABULARY = 200
HF = re.compile(r"hf://([^/]+/[^/@]+)@([^/]+)/(.+)")


class Upstream:
    """The servers, the files made so far, and a ZOO_HOME (`home`) that pulls from them; use it as a context.

    Processes may use one folder at once: they share files and home, each with servers and a registry of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.files, self.home, self.registry = (
            folder / "files",
            folder / "home",
            folder / f"registry-{os.getpid()}.yaml",
        )
        self.hub, self.web = FakeHub(), Loopback()
        self.rows: dict[str, dict[str, Any]] = {}
        self.pulled: dict[str, Path] = {}
        self.files.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Upstream":
        self.hub.__enter__()
        self.web.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.web.__exit__(*details)
        self.hub.__exit__(*details)

    def provide(self, name: str) -> Path:
        """Make and serve the files of a shipped row, once; returns their folder."""
        folder = self.files / name
        if name not in self.rows:
            with FileLock(self.files / f"{name}.lock"):
                if not (self.files / f"{name}.made").exists():
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir()
                    write_weights(name, folder)
                    (self.files / f"{name}.made").touch()
            self.publish(name, folder)
        return folder

    def publish(self, name: str, folder: Path) -> None:
        """Serve `folder` as the files of a shipped row, and add the row with their digests to the registry file."""
        row = deepcopy(ROWS[name])
        if row.get("head", {}).get("task") == "fill-mask":
            row["head"]["outputs"] = VOCABULARY
        for file in row["files"]:
            data = _mapped(folder / file["path"])
            sources = [self._serve(url, data) for url in file["sources"] if not url.startswith("pypi://")]
            file |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "sources": sources}
        self.rows[name] = row
        self.registry.write_text(json.dumps({"schema_version": 1, "models": self.rows}, indent=1))

    def _serve(self, url: str, data: Data) -> str:
        if match := HF.fullmatch(url):
            repo, commit, path = match.groups()
            held = self.hub.repos.get((repo, commit), HubRepo({}))
            files = {**held.files, path: data}
            large = frozenset(name for name in files if name.endswith(LARGE))
            self.hub.add(repo, commit, HubRepo(files, lfs=large))
            return url
        return self.web.script("/" + url.removeprefix("https://").partition("/")[2], whole(data))

    def run(self, *argv: str, home: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """Run zoo with this registry in its own process, because huggingface_hub reads its environment at import."""
        environment = {
            "ZOO_HOME": str(home or self.home),
            "ZOO_REGISTRY": str(self.registry),
            "ZOO_DEVICE": "cpu",
            "HF_ENDPOINT": self.hub.origin,
        }
        command = [sys.executable, "-m", "zoo_cli", *argv]
        return subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=600
        )

    def pull(self, name: str) -> Path:
        """`zoo pull NAME` by the real command, once; returns the folder of the pulled files."""
        self.provide(name)
        if name not in self.pulled:
            done = self.run("pull", name)
            assert done.returncode == 0, done.stderr
            self.pulled[name] = Path(done.stdout.strip())
        return self.pulled[name]


def _mapped(path: Path) -> Data:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def write_weights(name: str, folder: Path) -> None:
    """The files of a shipped row in upstream's layout, with random weights that depend only on the row's name."""
    row = ROWS[name]
    [*_, checkpoint] = (file["path"] for file in row["files"])
    if row["family"] == "bert":
        _write_text(row, folder)
    elif row["config"].get("layout") == "transformers":
        _write_transformers_resnet(row, folder)
    else:
        # Twins are rows with the same weights in another file format.
        _write_state(torchvision_model(row, seed=_seed(re.sub(r"_(pth|bin)$", "", name))), row, folder / checkpoint)


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def pixels(row: dict[str, Any], count: int = 3) -> "torch.Tensor":
    """The bundled photographs as torchvision preprocesses them for a row, float32 [count, 3, crop, crop]."""
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    preprocess = row["preprocess"]
    steps = v2.Compose(
        [
            v2.Resize(preprocess["resize"], v2.InterpolationMode(preprocess["interpolation"]), antialias=True),
            v2.CenterCrop(preprocess["crop"]),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocess["mean"], preprocess["std"]),
        ]
    )
    images = sorted(FOLDER.glob("*.jpg"))[:count]
    return torch.stack([steps(Image.open(path).convert("RGB")) for path in images])


def torchvision_model(row: dict[str, Any], *, seed: int) -> "torch.nn.Module":
    """Torchvision's network of a row with random weights, its auxiliary heads included, in eval mode."""
    import torch
    from torchvision import models

    torch.manual_seed(seed)
    inception = {"init_weights": False, "aux_logits": True, "transform_input": row["config"].get("transform_input")}
    model = models.get_model(row["config"]["arch"], **(inception if row["family"] == "inception" else {}))
    settle(model, pixels(row))
    return model.eval()


def settle(model: "torch.nn.Module", examples: "torch.Tensor") -> None:
    """Make convolutions random and batch norm as after training: each layer's statistics are those of real images.

    With initial statistics random activations vanish or explode layer by layer, and comparing them means little.
    """
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            torch.nn.init.uniform_(module.weight, 0.4, 1.0)
            torch.nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        model.train()(examples)
    model.eval()


def _write_state(model: "torch.nn.Module", row: dict[str, Any], path: Path) -> None:
    """Write the state as torchvision saves it (a pickle), or with the names of timm's class (safetensors)."""
    import torch

    if path.suffix != ".safetensors":
        torch.save(model.state_dict(), path)
        return
    import timm
    from safetensors.torch import save_file

    copy = timm.create_model(row["config"]["arch"], pretrained=False)
    copy.load_state_dict(model.state_dict())
    save_file(copy.state_dict(), path, metadata={"format": "pt"})


def _write_transformers_resnet(row: dict[str, Any], folder: Path) -> None:
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(_seed(row["origin"]))
    deep = {
        "resnet18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
        "resnet50": {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"},
    }
    model = ResNetForImageClassification(ResNetConfig(**deep[row["config"]["arch"]], num_labels=1000))
    settle(model, pixels(row))
    model.save_pretrained(folder)


def _write_text(row: dict[str, Any], folder: Path) -> None:
    """A shallow text encoder of the row's width with a small vocabulary, and the heads that its publisher trained."""
    import torch
    from transformers import BertConfig, BertForPreTraining, DistilBertConfig, DistilBertForMaskedLM, DistilBertModel

    dim, positions = row["dim"], row["preprocess"]["max_length"]
    if row.get("head", {}).get("task") == "fill-mask":
        torch.manual_seed(_seed(row["origin"]))
        if row["config"]["arch"] == "bert":
            shape = {"hidden_size": dim, "num_attention_heads": dim // 64, "intermediate_size": dim}
            model = BertForPreTraining(BertConfig(**{**TINY, **shape, "max_position_embeddings": positions}))
        else:
            model = DistilBertForMaskedLM(
                DistilBertConfig(vocab_size=VOCABULARY, dim=dim, n_layers=2, n_heads=dim // 64, hidden_dim=dim)
            )
        spread(model)
        model.eval().save_pretrained(folder)
        write_files(folder)
        return
    if row["config"]["arch"] == "bert":
        shape = {"hidden_size": dim, "num_attention_heads": dim // 32, "intermediate_size": dim}
        folder.rmdir()
        write_bert(folder, config={**TINY, **shape, "max_position_embeddings": positions})
        return
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=200, dim=dim, n_layers=2, n_heads=dim // 64, hidden_dim=dim)
    DistilBertModel(config).save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
