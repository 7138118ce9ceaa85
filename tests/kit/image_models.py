"""Models of images as transformers publishes them, with seeded random weights."""

from pathlib import Path
from typing import Any

import numpy as np

from zoo import Zoo

#: By model type: the library's prefix of class names, and a small configuration for images of 32x32 pixels.
IMAGE_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        kind: (
            prefix,
            {
                "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                "intermediate_size": 64, **more,
            },
        )
        for kind, prefix, more in (
            ("vit", "ViT", {}),
            ("deit", "DeiT", {}),
            ("beit", "Beit", {"use_relative_position_bias": True}),
            ("vit_msn", "ViTMSN", {}),
            ("dinov2", "Dinov2", {"image_size": 40}),
            ("dinov2_with_registers", "Dinov2WithRegisters", {"image_size": 40}),
            ("dinov3_vit", "DINOv3ViT", {"num_register_tokens": 2}),
        )
    },
    "convnext": ("ConvNext", {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}),
    "convnextv2": ("ConvNextV2", {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}),
    "dinov3_convnext": ("DINOv3ConvNext", {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}),
    "resnet": ("ResNet", {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 40], "embedding_size": 8}),
    "regnet": ("RegNet", {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 40], "groups_width": 8}),
    "bit": ("Bit", {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 64], "embedding_size": 16, "num_groups": 8}),
    "swin": ("Swin", {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
                      "window_size": 4}),
    "swinv2": ("Swinv2", {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
                          "window_size": 4}),
    "mobilenet_v1": ("MobileNetV1", {"depth_multiplier": 0.25, "min_depth": 8}),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.35}),
    "efficientnet": ("EfficientNet", {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.3,
                                      "hidden_dim": 320}),
    "levit": ("Levit", {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4],
                        "key_dim": [8, 8, 8], "depths": [1, 1, 1]}),
    "poolformer": ("PoolFormer", {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}),
    "segformer": ("Segformer", {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32],
                                "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 16}),
    "siglip_vision_model": ("SiglipVision", {"image_size": 32, "patch_size": 8, "hidden_size": 32,
                                             "num_hidden_layers": 2, "num_attention_heads": 4,
                                             "intermediate_size": 64}),
    "clip_vision_model": ("CLIPVision", {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2,
                                         "num_attention_heads": 4, "intermediate_size": 64}),
}  # fmt: skip


def write_image_model(
    folder: Path, kind: str, head: str = "ForImageClassification", *, seed: int, labels: int = 7, **changes: Any
) -> Any:
    """Write a model of images and its image processor as transformers does; returns the model, in eval mode.

    `changes` are settings of the processor; `config` among them are changes of the configuration.
    """
    import torch
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES as PROCESSORS

    torch.manual_seed(seed)
    prefix, shape = IMAGE_SHAPES[kind]
    names = {index: f"class {index}" for index in range(labels)}
    shape = {**shape, "id2label": names, **changes.pop("config", {})}
    side = shape.get("image_size", 32)
    config = getattr(transformers, f"{prefix}Config")(**shape)
    model = getattr(transformers, prefix + head)(config)
    disturb(model, side)
    model.save_pretrained(folder)
    others = {"dinov2_with_registers": "dinov2", "dinov3_convnext": "dinov3_vit"}
    of_kind = PROCESSORS[others.get(kind, kind.removesuffix("_vision_model"))]["torchvision"]
    kind_of_processor = getattr(transformers, of_kind)
    sizes = {name: getattr(kind_of_processor, name, None) or {} for name in ("size", "crop_size")}
    defaults = {name: dict.fromkeys(value, side) for name, value in sizes.items() if value}
    kind_of_processor(**{**defaults, **changes}).save_pretrained(folder)
    return model.eval()


def disturb(model: Any, side: int) -> None:
    """Give a model other numbers than zeros, ones and tiny ones, so that a test notices whatever is not loaded.

    Batch norm gets the statistics of random images, so that its output depends on the input.
    """
    import torch

    norms = [each for each in model.modules() if isinstance(each, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=(2 if parameter.ndim == 4 else 1) * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if "lambda" in name or "layer_scale" in name:
                parameter.uniform_(0.1, 0.3)
        for norm in norms:
            norm.momentum = 1.0
        if norms:
            model.train()(pixel_values=torch.randn(8, 3, side, side))
        for norm in norms:
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.2))


def answers(zoo: Zoo, name: str, pixels: np.ndarray) -> dict[str, Any]:
    """The reference's features and scores on the pulled files."""
    entry = zoo.entry(name)
    folder = zoo.pull(name, trust_first=True)
    return dict(zoo.plugins.backbone(entry.family)(entry, folder).reference({"pixels": pixels}))
