"""What is known of a network that makes features of images, and of the images that it expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError

Interpolation = Literal["bilinear", "bicubic"]
DROPOUT_RATES = {
    **dict.fromkeys(("Dropout", "Dropout1d", "Dropout2d", "StochasticDepth"), ("p",)),
    "MultiheadAttention": ("dropout",),
    "DropPath": ("drop_prob",),  # timm's
}
Channels = tuple[float, float, float]


@dataclass(frozen=True)
class ImageInput:
    """How a network's images are prepared, as whoever trained it says.

    The shorter side is resized to `size / crop`, and the square of `size` pixels in the middle is taken.

    Attributes
    ----------
    size : int
        Side of the square in pixels.
    mean, std : tuple of 3 floats
        Of the RGB channels, on images in [0, 1].
    interpolation : "bilinear" or "bicubic"
    crop : float
        Side of the square over the shorter side of the image, at most 1.
    """

    size: int
    mean: Channels
    std: Channels
    interpolation: Interpolation = "bilinear"
    crop: float = 1.0


@dataclass(frozen=True)
class Backbone:
    """A network (B, 3, H, W) -> (B, F), and the images that it expects; None where it has no opinion."""

    module: nn.Module
    input: ImageInput | None = None


def without_dropout(module: nn.Module) -> nn.Module:
    """The network with every dropout and stochastic depth set to 0, in place.

    Their draws would differ between workers and after a resume.
    """
    for child in module.modules():
        for name in DROPOUT_RATES.get(type(child).__name__, ()):
            setattr(child, name, 0.0)
    return module


def feature_size(module: nn.Module, size: int, name: str) -> int:
    """F, from a pass over black images of `size` pixels.

    Raises
    ------
    ConfigError
        When the network refuses such images, or does not return one vector for each.
    """
    was_training = module.training
    try:
        with torch.no_grad():
            features = module.eval()(torch.zeros(2, 3, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"model.encoder={name} cannot take images of {size} pixels ({error}); set views.size to what it takes"
        ) from error
    finally:
        module.train(was_training)
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 2:
        found = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise ConfigError(
            f"model.encoder={name} returns {found} for images (2, 3, {size}, {size}); it has to return features (2, F)"
        )
    return features.shape[1]
