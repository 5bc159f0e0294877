"""Two augmented views of a batch of uint8 images, on the batch's device, with random parameters for each sample.

The operations are those of SimCLR, as torchvision defines them: random resized crop, rotation, flips, colour jitter,
grayscale, gaussian blur. Parameters come from `keyed_random`, keyed by (seed, epoch, sample index, view), so that
neither the number of workers nor the order of the batch changes a view. On CUDA nothing here waits for the device.

Resampling is two small matrix products per image, one along each axis: on 32-pixel images on a CPU that is faster
than `grid_sample`, and unlike it shrinks without aliasing, exactly as torchvision does with ``antialias=True``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    to_gray,
)
from pipeline.data.preprocess import Preprocess, check_images, scale_to_unit
from pipeline.keyed_random import Stream, uniform

if TYPE_CHECKING:  # only for the type, so that views work where pydantic is not installed
    from pipeline.config.models import ViewsConfig

CROP_TRIES = 10  # torchvision's number


class _Draws(NamedTuple):
    """The uniform numbers of each sample, except those for the crop's size, each of shape (B,)."""

    left: Tensor
    top: Tensor
    horizontal_flip: Tensor
    vertical_flip: Tensor
    angle: Tensor
    jitter: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor


class TwoViews:
    """Draws two views of each image.

    Colour jitter applies brightness, contrast, saturation and hue in this order to every sample. torchvision shuffles
    the four for each image, which a batch could only match by computing all of them several times over.

    Parameters
    ----------
    policy : ViewsConfig
        Which operations to apply, how often and how strongly; its `size` must be set.
    mean, std : sequence of 3 floats
        Of the data set's channels, as `Preprocess` takes them.
    seed : int
        The run's seed.

    Raises
    ------
    ValueError
        As `Preprocess` raises it.
    """

    def __init__(self, policy: ViewsConfig, mean: Sequence[float], std: Sequence[float], seed: int) -> None:
        assert policy.size is not None
        self.policy, self.size, self.seed = policy, policy.size, seed
        self._preprocess = Preprocess(policy.size, mean, std)

    def __call__(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Make two independent views of each image.

        Parameters
        ----------
        images : Tensor of shape (B, H, W, 3), uint8
        index : Tensor of shape (B,), int64
            Sample indices within the data set, on the images' device.
        epoch : int

        Returns
        -------
        pair of Tensor of shape (B, 3, size, size), float32
            Normalised, on the images' device.

        Raises
        ------
        ValueError
            If `images` or `index` has another type or shape.
        """
        check_images(images)
        if index.shape != images.shape[:1]:
            raise ValueError(f"index has shape {tuple(index.shape)} for {len(images)} images; give one for each image")
        pixels = scale_to_unit(images)
        self._preprocess.to(images.device)  # copies on first use only
        first, second = (
            self._view(pixels, uniform(self.seed, epoch, index, stream, _NUM_DRAWS))
            for stream in (Stream.VIEW_A, Stream.VIEW_B)
        )
        return first, second

    def _view(self, pixels: Tensor, numbers: Tensor) -> Tensor:
        """One view of `pixels` (B, H, W, 3) in [0, 1], from `numbers` (B, _NUM_DRAWS)."""
        crop_draws = numbers[:, : 2 * CROP_TRIES].unflatten(1, (CROP_TRIES, 2))
        draws = _Draws(*numbers[:, 2 * CROP_TRIES :].unbind(1))
        return self._preprocess.normalize(self._colour(self._geometry(pixels, crop_draws, draws), draws))

    def _geometry(self, pixels: Tensor, crop_draws: Tensor, draws: _Draws) -> Tensor:
        """Rotate about the crop's centre, crop, flip and resize: (B, H, W, 3) to (B, 3, size, size)."""
        policy, (height, width) = self.policy, pixels.shape[1:3]
        crop_width, crop_height = _crop_size(crop_draws, height, width, policy.crop_scale, policy.crop_ratio)
        left = (draws.left * (width - crop_width + 1)).floor()
        top = (draws.top * (height - crop_height + 1)).floor()
        if policy.rotation > 0:  # before the crop, so that the view's corners show the image and not a fill colour
            angle = _between(draws.angle, -policy.rotation, policy.rotation).deg2rad()
            pixels = _rotate(pixels, angle, left + crop_width / 2, top + crop_height / 2)
        rows = _resample_weights(top, crop_height, height, self.size, draws.vertical_flip < policy.vertical_flip)
        columns = _resample_weights(left, crop_width, width, self.size, draws.horizontal_flip < policy.horizontal_flip)
        return _resample(pixels, rows, columns)

    def _colour(self, images: Tensor, draws: _Draws) -> Tensor:
        """Jitter, grayscale and blur, each on the samples that drew it. May overwrite `images`."""
        policy = self.policy
        if policy.jitter > 0:
            factors = (draws.brightness, draws.contrast, draws.saturation, draws.hue)
            images = _where(draws.jitter < policy.jitter, self._jitter, images, *factors)
        if policy.grayscale > 0:
            images = _where(draws.grayscale < policy.grayscale, to_gray, images)
        if policy.blur > 0:
            images = _where(draws.blur < policy.blur, self._blur, images, _between(draws.sigma, *policy.blur_sigma))
        return images

    def _jitter(self, images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
        """Colour jitter of every image, from uniform numbers of shape (n,)."""
        policy = self.policy
        for operation, strength, draw in (
            (adjust_brightness, policy.brightness, brightness),
            (adjust_contrast, policy.contrast, contrast),
            (adjust_saturation, policy.saturation, saturation),
        ):
            if strength > 0:
                images = operation(images, _between(draw, 1 - strength, 1 + strength))
        return adjust_hue(images, _between(hue, -policy.hue, policy.hue)) if policy.hue > 0 else images

    def _blur(self, images: Tensor, sigma: Tensor) -> Tensor:
        """Gaussian blur of every image; the kernel's radius is 3 times the largest sigma, or what the image allows."""
        radius = min(math.ceil(3 * self.policy.blur_sigma[1]), self.size - 1)
        return gaussian_blur(images, sigma, radius)


_NUM_DRAWS = 2 * CROP_TRIES + len(_Draws._fields)


def _where(chosen: Tensor, operation: Callable[..., Tensor], images: Tensor, *parameters: Tensor) -> Tensor:
    """`operation` on the images whose `chosen` (B,) is true; CPU images are overwritten.

    A CPU skips the others. On a GPU, counting the chosen would make the host wait, so all are computed.
    """
    if images.device.type != "cpu":
        return torch.where(chosen[:, None, None, None], operation(images, *parameters), images)
    rows = chosen.nonzero().squeeze(1)
    if len(rows) > 0:
        images[rows] = operation(images.index_select(0, rows), *(parameter[rows] for parameter in parameters))
    return images


def _crop_size(
    draws: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Width and height (B,) in whole pixels of `RandomResizedCrop`'s boxes, from `draws` (B, tries, 2).

    As in torchvision, the first box that fits is taken or, if none does, the largest box of a permitted ratio. In that
    case torchvision takes the middle of the image; here the position is drawn as for any box.
    """
    area = height * width * _between(draws[..., 0], *scale)
    aspect = _between(draws[..., 1], math.log(ratio[0]), math.log(ratio[1])).exp_()
    widths, heights = (area * aspect).sqrt_().round_(), (area / aspect).sqrt_().round_()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.int().argmax(1, keepdim=True)
    fallback = min(max(width / height, ratio[0]), ratio[1])
    widest, highest = min(width, round(height * fallback)), min(height, round(width / fallback))
    found = fits.any(1)
    return (
        torch.where(found, widths.gather(1, first).squeeze(1), widest),
        torch.where(found, heights.gather(1, first).squeeze(1), highest),
    )


def _resample_weights(start: Tensor, length: Tensor, in_size: int, out_size: int, flip: Tensor) -> Tensor:
    """Antialiased bilinear weights (B, out_size, in_size) from the span [start, start + length) to `out_size` pixels.

    A triangle around each output pixel's centre, as wide as two pixels of the coarser grid, cut at the span's ends.
    """
    out = torch.arange(out_size, device=start.device, dtype=start.dtype)
    pixel = torch.arange(in_size, device=start.device, dtype=start.dtype) + 0.5
    out = torch.where(flip[:, None], out_size - 1 - out, out)
    step = (length / out_size)[:, None]
    center = start[:, None] + (out + 0.5) * step
    end = (start + length)[:, None]
    weights = (pixel - center[..., None]).abs_().div_(-step.clamp(min=1)[..., None]).add_(1).clamp_(min=0)
    weights *= ((pixel > start[:, None]) & (pixel < end))[:, None]
    return weights.div_(weights.sum(2, keepdim=True))


def _resample(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Weighted sums along both axes: (B, H, W, 3), (B, S, H) and (B, S, W) to (B, 3, S, S)."""
    batch, size, width = columns.shape
    lines = (rows @ pixels.flatten(2)).view(batch, size, width, 3)
    lines = lines.permute(0, 3, 1, 2).reshape(batch, 3 * size, width)
    return (lines @ columns.mT).view(batch, 3, size, size)


def _rotate(pixels: Tensor, angle: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Rotate (B, H, W, 3) counter-clockwise by `angle` (B,) radians about pixel positions (x, y), each (B,).

    The image is mirrored at its edges, so that dark corners do not reveal the angle.
    """
    height, width = pixels.shape[1:3]
    cos, sin = angle.cos(), angle.sin()
    aspect = width / height
    x, y = 2 * x / width - 1, 2 * y / height - 1  # affine_grid's coordinates: -1 and 1 are the image's edges
    across, down = -sin / aspect, sin * aspect
    rows = (cos, across, x - cos * x - across * y, down, cos, y - down * x - cos * y)
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(pixels), 3, height, width], align_corners=False)
    images = pixels.permute(0, 3, 1, 2)
    turned = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return turned.permute(0, 2, 3, 1).contiguous()


def _between(draw: Tensor, low: float, high: float) -> Tensor:
    """A uniform number in [0, 1) mapped to [low, high)."""
    return low + (high - low) * draw
