"""The evaluation view: turns decoded images into network input, without randomness."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Preprocess(nn.Module):
    """Make the square view for evaluation, from the decoded image or its middle, and normalise the channels.

    A module, so that it moves with a model to a device and is exported with it. Its statistics are part of the state,
    so saved weights cannot be used with those of another data set by mistake.

    Parameters
    ----------
    size : int
        Side of the view in pixels.
    mean, std : sequence of 3 floats
        Of the data set's channels, on images scaled to [0, 1]. A `std` of 0 marks a constant channel, which is only
        centred.
    crop : bool
        Take the `size` pixels in the middle, as pretrained networks expect, instead of resizing the whole image.

    Raises
    ------
    ValueError
        If `mean` or `std` does not have three finite numbers, or `std` has a negative one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], *, crop: bool = False) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} is {list(values)}; give one finite number for each of the 3 channels")
        if min(std) < 0:
            raise ValueError(f"std is {list(std)}; give numbers that are 0 or more (0 for a constant channel)")
        self.size, self.crop = size, crop
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([s or 1.0 for s in std], dtype=torch.float32).view(3, 1, 1))

    def extra_repr(self) -> str:
        """What the state does not hold."""
        return f"size={self.size}, crop={self.crop}"

    def forward(self, images: Tensor) -> Tensor:
        """Make the view of each image.

        Parameters
        ----------
        images : Tensor of shape (B, H, W, 3), uint8
            On the module's device.

        Returns
        -------
        Tensor of shape (B, 3, size, size), float32
            Normalised, contiguous.

        Raises
        ------
        ValueError
            If `images` has another type or shape.
        """
        check_images(images)
        if self.crop:
            images = self._middle(images)
        pixels = scale_to_unit(images).permute(0, 3, 1, 2)
        if pixels.shape[2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        return self.normalize(pixels)

    def _middle(self, images: Tensor) -> Tensor:
        """The square in the middle of images (B, H, W, 3), rounded as torchvision does; short sides stay whole."""
        top, left = (round(max(0, side - self.size) / 2) for side in images.shape[1:3])
        return images[:, top : top + self.size, left : left + self.size]

    def normalize(self, images: Tensor) -> Tensor:
        """(images - mean) / std of images (B, 3, H, W) in [0, 1], contiguous. Overwrites `images`."""
        return images.sub_(self.mean).div_(self.std).contiguous()


def check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` is (B, H, W, 3) uint8."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3:
        raise ValueError(f"images are {images.dtype} of shape {tuple(images.shape)}; give uint8 of shape (B, H, W, 3)")


def scale_to_unit(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return images.float().div_(255)
