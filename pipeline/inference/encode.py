"""Encoding a data set: from blocks of images to features, for the E-step, the probes and assignment alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Encoder = Callable[[Tensor], Tensor]
"""From uint8 images (n, H, W, 3) to features (n, D), in evaluation mode and without gradient."""


def encode_blocks(encode: Encoder, blocks: Iterable[tuple[Tensor, Tensor]], *, empty: Tensor) -> tuple[Tensor, Tensor]:
    """Features (n, D) and index (n,) of all images of a worker's blocks, in the order in which they come.

    Parameters
    ----------
    encode : callable
    blocks : iterable of (images uint8 (b, H, W, 3), index (b,))
        One forward pass each.
    empty : Tensor (0, D)
        The features of a worker that has no block; gives their device, type and length.
    """
    features, numbers = [empty], [torch.empty(0, dtype=torch.int64, device=empty.device)]
    for images, index in blocks:
        features.append(encode(images))
        numbers.append(index)
    return torch.cat(features), torch.cat(numbers)
