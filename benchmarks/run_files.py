"""The systems that `run.py` compares from JPEG files to features, each with its own best pipeline.

The protocol is that of run_peer.py. Each process tries some settings (workers, threads, the place of the resizing) and
keeps the fastest. The files have one size, which OpenVINO needs to know beforehand.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from inference_peer import Call, serve
from run_peer import prepared, quickest

#: Images in a batch of torch.
BATCH = 16
#: Processes that decode, and threads of torch that compute.
WORKERS = ((0, 2), (1, 1), (1, 2), (2, 1), (2, 2))
#: The images with which settings are tried.
TRIED = 64


def torchvision(spec: dict[str, Any], facts: dict[str, Any]) -> Call:
    """torchvision: decode_jpeg, transforms v2 on bytes in the workers of a DataLoader, a channels_last network."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    steps = spec["steps"]
    shrink = v2.Compose(
        [
            v2.Resize(steps["resize"], v2.InterpolationMode(steps["interpolation"]), antialias=True),
            v2.CenterCrop(steps["crop"]),
        ]
    )
    finish = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(steps["mean"], steps["std"])])
    return loop(spec, facts, lambda path: shrink(decode_jpeg(read_file(path), ImageReadMode.RGB)), finish)


def timm(spec: dict[str, Any], facts: dict[str, Any]) -> Call:
    """timm: PIL images through its evaluation transform in the workers of a DataLoader, a channels_last network."""
    from PIL import Image
    from timm.data import create_transform

    steps = spec["steps"]
    transform = create_transform(
        input_size=(3, steps["crop"], steps["crop"]), crop_pct=steps["crop"] / steps["resize"], mean=steps["mean"],
        std=steps["std"], interpolation=steps["interpolation"],
    )  # fmt: skip
    return loop(spec, facts, lambda path: transform(Image.open(path).convert("RGB")), lambda batch: batch)


def loop(
    spec: Mapping[str, Any], facts: dict[str, Any], read: Callable[[str], Any], finish: Callable[[Any], Any]
) -> Call:
    """A DataLoader that reads the files in workers, and the network on the batches that `finish` normalises."""
    import torch
    from torch.utils.data import DataLoader, Dataset, Sampler

    files, network = paths(spec), torch_network(spec).to(memory_format=torch.channels_last)

    class Files(Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            # Without it each worker would use as many threads as there are cores.
            torch.set_num_threads(1)
            return read(files[index])

    class Next(Sampler[int]):
        """The next `count` files of each pass."""

        count, coming = 0, cycle(range(len(files)))

        def __len__(self) -> int:
            return self.count

        def __iter__(self) -> Iterator[int]:
            return islice(self.coming, self.count)

    def with_workers(workers: int, threads: int) -> Call:
        sampler = Next()
        loader = DataLoader(
            Files(), BATCH, sampler=sampler, num_workers=workers, persistent_workers=bool(workers),
            prefetch_factor=4 if workers else None,
        )  # fmt: skip

        @torch.inference_mode()
        def call(count: int) -> None:
            sampler.count = count
            for batch in loader:
                torch.set_num_threads(threads)
                network(finish(batch).contiguous(memory_format=torch.channels_last))

        return call

    settings = WORKERS if spec["threads"] > 1 else ((0, 1),)
    best, call = quickest({pair: with_workers(*pair) for pair in settings}, TRIED)
    facts["workers"], facts["threads"] = best
    return call


def torch_network(spec: Mapping[str, Any]) -> Any:
    """The network with random weights, without its classifier."""
    import torch

    torch.manual_seed(0)
    if spec["kind"] == "timm":
        import timm as library

        names = {"resnet50": "resnet50", "lite0": "tf_efficientnet_lite0"}
        return library.create_model(names[spec["network"]], pretrained=False, num_classes=0).eval()
    if spec["network"] == "resnet50":
        from torchvision.models import resnet50

        model = resnet50()
        model.fc = torch.nn.Identity()
        return model.eval()
    from efficientnet_lite_pytorch import EfficientNet

    # torchvision has no Lite0: this is the package of its weights.
    model = EfficientNet.from_name("efficientnet-lite0")
    model._fc = torch.nn.Identity()
    return model.eval()


def openvino(spec: dict[str, Any], facts: dict[str, Any]) -> Call:
    """OpenVINO: threads decode, the model preprocesses (PrePostProcessor), an AsyncInferQueue runs the requests.

    Tried are its own number of requests and two, each with resizing in the model and by Pillow beside decoding.
    """
    files = cycle(paths(spec))
    pool = ThreadPoolExecutor(spec["threads"])

    def with_requests(requests: int, in_model: bool) -> Call:
        queue = infer_queue(spec, requests, in_model)
        read = decoder(None if in_model else spec["steps"])

        def call(count: int) -> None:
            # Some images are decoded ahead.
            waiting: deque[Future[Any]] = deque()
            for path in islice(files, count):
                waiting.append(pool.submit(read, path))
                if len(waiting) > 4 * spec["threads"]:
                    queue.start_async({0: waiting.popleft().result()})
            for future in waiting:
                queue.start_async({0: future.result()})
            queue.wait_all()

        return call

    calls = {
        (requests, in_model): with_requests(requests, in_model) for requests in (0, 2) for in_model in (True, False)
    }
    (requests, in_model), call = quickest(calls, TRIED)
    facts["requests"], facts["resizes"] = requests or "its own number", "in the model" if in_model else "by Pillow"
    return call


def infer_queue(spec: Mapping[str, Any], requests: int, in_model: bool) -> Any:
    """A queue of requests to the network with its preprocessing, from images uint8 [1, height, width, 3]."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor, ResizeAlgorithm

    steps, core = spec["steps"], ov.Core()
    model = core.read_model(spec["body"])
    crop = steps["crop"]
    model.reshape([1, 3, crop, crop])
    processor = PrePostProcessor(model)
    image = processor.input()
    image.model().set_layout(ov.Layout("NCHW"))
    image.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    if in_model:
        width, height = spec["size"]
        image.tensor().set_shape([1, height, width, 3])
        high, wide = (steps["resize"] * side // min(spec["size"]) for side in (height, width))
        top, left = (round((side - crop) / 2) for side in (high, wide))
        algorithm = {
            "bilinear": ResizeAlgorithm.RESIZE_BILINEAR_PILLOW, "bicubic": ResizeAlgorithm.RESIZE_BICUBIC_PILLOW,
        }[steps["interpolation"]]  # fmt: skip
        image.preprocess().resize(algorithm, high, wide)
        image.preprocess().crop([0, top, left, 0], [1, top + crop, left + crop, 3])
    else:
        image.tensor().set_shape([1, crop, crop, 3])
    image.preprocess().convert_element_type(ov.Type.f32)
    image.preprocess().mean([255 * each for each in steps["mean"]]).scale([255 * each for each in steps["std"]])
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": spec["threads"],
        # Otherwise OpenVINO computes in half precision on processors that support it.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(processor.build(), "CPU", settings)
    return ov.AsyncInferQueue(compiled, requests)


def decoder(steps: "Mapping[str, Any] | None") -> Callable[[str], Any]:
    """A function from a path to an image uint8 [1, height, width, 3], with `steps` resized and cropped by Pillow."""
    from PIL import Image

    def read(path: str) -> Any:
        image = Image.open(path).convert("RGB")
        if steps is not None:
            short, method = min(image.size), Image.Resampling[steps["interpolation"].upper()]
            image = image.resize([steps["resize"] * side // short for side in image.size], method)
            left, top = (round((side - steps["crop"]) / 2) for side in image.size)
            image = image.crop((left, top, left + steps["crop"], top + steps["crop"]))
        return np.asarray(image)[None]

    return read


def paths(spec: Mapping[str, Any]) -> Sequence[str]:
    """The files."""
    found: list[str] = json.loads(Path(spec["photos"]).read_text(encoding="utf-8"))
    return found


KINDS = {each.__name__: each for each in (torchvision, timm, openvino)}

if __name__ == "__main__":
    from run_peer import seconds

    serve(lambda spec: prepared(spec, KINDS), lambda call, request: [seconds(call, request["batch"])])
