"""Write the golden vectors beside this file again, with the reference libraries and without zoo.

    python tests/golden/make.py [FOLDER]

FOLDER has the weights as `zoo pull` stores them (default: .cache/weights/models), with the digests in registry.yaml. It
is only read.
"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
IMAGES = HERE.parents[1] / "zoo" / "assets"
SENTENCES = [
    "The parcel was left in the rain behind the bins.",
    "My card was charged twice for the same order.",
    "Ünïcode, 東京 and a word unaffable to any vocabulary: floccinaucinihilipilification!",
]
#: Whole photographs, and how many of them are also computed with doubled pixels.
NAMES = sorted(path.name for path in IMAGES.glob("*.jpg"))
DOUBLED = 2


def minilm(folder: Path) -> dict[str, Any]:
    """transformers' BertModel and tokenizer, the mean over real tokens, L2 normalised, as on the model's card."""
    import torch
    from transformers import BertModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    batch = tokenizer(SENTENCES, padding=True, truncation=True, max_length=256, return_tensors="pt")
    model = BertModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None].float()
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return {"model": "all-minilm-l6-v2", "inputs": SENTENCES, "vectors": rounded(vectors)}


def lite0(folder: Path) -> dict[str, Any]:
    """efficientnet-lite-pytorch on images that torchvision prepared: short side 256, centre 224, (x - 127) / 128.

    For the whole images; and for the middle of the first ones with every pixel doubled, 256 x 256, which needs no
    resizing.
    """
    import torch
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image
    from torchvision import transforms

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(folder / "efficientnet-lite0-57934424.pth", weights_only=True))
    model.eval()

    def features(names: list[str], *steps: Any) -> list[list[float]]:
        prepare = transforms.Compose([*steps, transforms.CenterCrop(224), transforms.PILToTensor()])
        pixels = torch.stack([prepare(Image.open(IMAGES / name).convert("RGB")) for name in names])
        with torch.inference_mode():
            return rounded(model.extract_features((pixels.float() - 127) / 128).mean((2, 3)))

    whole = features(NAMES, transforms.Resize(256, transforms.InterpolationMode.BICUBIC))
    twice = features(NAMES[:DOUBLED], doubled)
    return {"model": "efficientnet_lite0", "inputs": NAMES, "vectors": whole, "doubled": twice}


def doubled(image: Any, side: int = 256) -> Any:
    """The middle of an image whose pixels are repeated in both directions."""
    import numpy as np
    from PIL import Image

    large = np.asarray(image).repeat(2, 0).repeat(2, 1)
    top, left = ((length - side) // 2 for length in large.shape[:2])
    return Image.fromarray(large[top : top + side, left : left + side])


def rounded(vectors: Any) -> list[list[float]]:
    """The numbers to 1e-6: the file is small, and equal on every machine except for the last digit."""
    return [[round(value, 6) for value in vector] for vector in vectors.tolist()]


def main() -> None:
    """Write one file for each model."""
    models = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[1] / ".cache" / "weights" / "models"
    for make, name in ((minilm, "all-minilm-l6-v2"), (lite0, "efficientnet_lite0")):
        (folder,) = (path.parent for path in (models / name).glob("*/manifest.json"))
        facts = make(folder)
        text = json.dumps(facts, ensure_ascii=False)
        # One line for each vector.
        text = text.replace("[[", "[\n[").replace("], [", "],\n[").replace(']], "', ']],\n"')
        (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
