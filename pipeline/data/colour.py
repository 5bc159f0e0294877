"""torchvision's colour operations and blur on a batch, with a parameter for each image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """torchvision's `adjust_brightness` of images (B, 3, H, W) in [0, 1] by a factor for each, of shape (B,)."""
    return (images * factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """torchvision's `adjust_contrast` of images (B, 3, H, W) in [0, 1] by a factor for each, of shape (B,)."""
    return _blend(_gray(images).mean((1, 2, 3), keepdim=True), images, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """torchvision's `adjust_saturation` of images (B, 3, H, W) in [0, 1] by a factor for each, of shape (B,)."""
    return _blend(_gray(images), images, factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """torchvision's `adjust_hue` of images (B, 3, H, W) in [0, 1] by a fraction of the circle for each, of shape (B,).

    A hue shift keeps the largest and the smallest channel value, so the conversion to HSV and back reduces to a ramp
    between the two for each channel.
    """
    red, green, blue = images.unbind(1)
    high, low = images.amax(1), images.amin(1)
    chroma = high - low
    sixths = torch.where(high == green, (blue - red) + 2 * chroma, (red - green) + 4 * chroma)
    sixths = torch.where(high == red, green - blue, sixths) / torch.where(chroma > 0, chroma, 1)
    sixths += 6 * shift[:, None, None]
    sixths -= 6 * (sixths / 6).floor_()
    ramps = (sixths - 3).abs_() - 1, 2 - (sixths - 2).abs_(), 2 - (sixths - 4).abs_()
    return torch.stack([ramp.clamp_(0, 1).mul_(chroma).add_(low) for ramp in ramps], dim=1)


def _gray(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W) with torchvision's weights."""
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def to_gray(images: Tensor) -> Tensor:
    """Three equal channels of luma."""
    return _gray(images).expand_as(images)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur images (B, C, H, W), mirrored at their borders, each by its own `sigma` (B,) in pixels.

    The kernel has 2 * `radius` + 1 pixels; `radius` is less than H and W.
    """
    batch, channels = images.shape[:2]
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernels = (-((offsets / sigma[:, None]) ** 2) / 2).exp_()
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = F.pad(images, [radius] * 4, mode="reflect").flatten(0, 1)[None]  # (1, B*C, ...): a group is a plane
    planes = F.conv2d(planes, kernels[:, None, None, :], groups=batch * channels)
    return F.conv2d(planes, kernels[:, None, :, None], groups=batch * channels).view_as(images)


def _blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Blend from `base` at factor 0 to `images` at factor 1, and beyond at larger factors."""
    return torch.lerp(base, images, factor[:, None, None, None]).clamp_(0, 1)
