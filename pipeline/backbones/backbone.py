"""A network that turns images into features, and the images that it expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, first_line

Interpolation = Literal["bilinear", "bicubic"]
DROPOUT_RATES = {
    **dict.fromkeys(("Dropout", "Dropout1d", "Dropout2d", "StochasticDepth"), ("p",)),
    "MultiheadAttention": ("dropout",),
    "DropPath": ("drop_prob",),  # timm's
}
Channels = tuple[float, float, float]


@dataclass(frozen=True)
class ImageInput:
    """How to prepare a network's images, according to whoever trained it.

    With the fit "crop" the shorter side is resized to `size / crop`, and the square of `size` pixels in the middle is
    taken; with "stretch" the image is resized to the square.

    Attributes
    ----------
    size : int
        Side of the square in pixels.
    mean, std : tuple of 3 floats
        Of the RGB channels, on images in [0, 1].
    interpolation : "bilinear" or "bicubic"
    crop : float
        Side of the square over the shorter side of the image, at most 1.
    fit : "crop" or "stretch"
    unsupported : str
        Steps of its own preparation that are not supported here, in words; empty if all are.
    """

    size: int
    mean: Channels
    std: Channels
    interpolation: Interpolation = "bilinear"
    crop: float = 1.0
    fit: Literal["crop", "stretch"] = "crop"
    unsupported: str = ""


@dataclass(frozen=True)
class Backbone:
    """A network (B, 3, H, W) -> (B, F), and the images that it expects; None if it does not say.

    `prefix` is the prefix of its weights' names in their file.
    """

    module: nn.Module
    input: ImageInput | None = None
    prefix: str = ""


def without_dropout(module: nn.Module) -> nn.Module:
    """The network with every dropout and stochastic depth set to 0, in place.

    Their draws would differ between workers and after a resume.
    """
    for child in module.modules():
        for name in DROPOUT_RATES.get(type(child).__name__, ()):
            setattr(child, name, 0.0)
    return module


def _other_input(module: nn.Module) -> str:
    """Why a network does not take float32 images of 3 channels, if its layers show it."""
    dtypes = {str(value.dtype).removeprefix("torch.") for value in module.parameters() if value.is_floating_point()}
    if others := sorted(dtypes - {"float32"}):
        return f"has weights of type {', '.join(others)}, but the images are float32; return network.float()"
    first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is not None and first.in_channels != 3:
        return (
            f"takes images of {first.in_channels} channels, but all images have 3 (gray ones too); give it a first "
            "layer with 3 input channels"
        )
    return ""


def feature_size(module: nn.Module, size: int, name: str) -> int:
    """The number of features F, from a pass over black images of `size` pixels.

    Raises
    ------
    ConfigError
        When the network refuses such images, or does not return one vector for each.
    """
    was_training = module.training
    try:
        with torch.no_grad():
            features = module.eval()(torch.zeros(2, 3, size, size))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        reason = _other_input(module) or (
            f"cannot take images of {size} pixels ({first_line(error)}); set views.size to a size that it accepts"
        )
        raise ConfigError(f"model.encoder={name} {reason}") from error
    finally:
        module.train(was_training)
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 2:
        found = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise ConfigError(
            f"model.encoder={name} returns {found} for images (2, 3, {size}, {size}); it must return features (2, F)"
        )
    return features.shape[1]
