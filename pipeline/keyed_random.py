"""Counter-based random numbers: a value depends on its key alone, never on rank, batch layout or device.

The key is (seed, epoch, sample index, stream, column). Each row is one SplitMix64 sequence (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014) whose start is a hash of the rest of the key. A run on
W workers therefore augments an image exactly as a run on one does, and a resumed run needs no generator state.

Equal keys give equal numbers by design, so every purpose has its own entry in `Stream`.
"""

from __future__ import annotations

import math
from enum import IntEnum, unique

import torch
from torch import Tensor

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_FIELD = (1 << 24) - 1  # a float32 holds 24 bits exactly, so that k / 2**24 is uniform without rounding up to 1


@unique
class Stream(IntEnum):
    """The registry of all streams: what numbers are drawn for. The values are part of every run: never change one."""

    VIEW_A = 0
    VIEW_B = 1
    NOISE_A = 2
    NOISE_B = 3
    CACHED_PAIR = 4
    SWEEP = 7
    HELD_OUT = 8
    ROW_GROUP_ORDER = 9
    ROW_ORDER = 10
    DRAWS = 11


def uniform(seed: int, epoch: int, index: Tensor, stream: Stream, size: int) -> Tensor:
    """Uniform numbers for each sample, the same bits on every device.

    Parameters
    ----------
    seed, epoch : int
        The part of the key that the whole batch shares; any integers.
    index : Tensor of shape (B,), int64
        Sample indices within the data set.
    stream : Stream
        What the numbers are drawn for.
    size : int
        Numbers per sample; the first n of them are the same for every ``size >= n``.

    Returns
    -------
    Tensor of shape (B, size), float32
        Multiples of 2**-24 in [0, 1), on the device of `index`.

    Raises
    ------
    ValueError
        If `index` is not a vector of int64.
    """
    return _fraction(_words(seed, epoch, index, stream, size), 40)


def normal(seed: int, epoch: int, index: Tensor, stream: Stream, size: int) -> Tensor:
    """Standard normal numbers for each sample (Box-Muller), all within +-5.8.

    Parameters, shape and errors are those of `uniform`. Devices agree up to the last bits of log, cos and sin.
    """
    words = _words(seed, epoch, index, stream, (size + 1) // 2)
    radius = (1 - _fraction(words, 40)).log_().mul_(-2).sqrt_()  # 1 - u is in (0, 1], so that the log is finite
    angle = _fraction(words, 16).mul_(2 * math.pi)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=2).flatten(1)[:, :size]


def _words(seed: int, epoch: int, index: Tensor, stream: Stream, size: int) -> Tensor:
    """(B, size) int64 words of 64 random bits."""
    if index.dtype != torch.int64 or index.dim() != 1:
        raise ValueError(f"index is {index.dtype} of shape {tuple(index.shape)}; give a vector of int64 sample indices")
    key = 0
    for part in (seed, epoch, stream):
        key = _mix_int((key ^ (part & _WORD)) + _GOLDEN & _WORD)
    start = _mix(index * _signed(_GOLDEN) ^ _signed(key))
    steps = torch.arange(1, size + 1, device=index.device) * _signed(_GOLDEN)
    return _mix(start[:, None] + steps)


def _fraction(words: Tensor, shift: int) -> Tensor:
    """24 bits of each word, from bit `shift` up, as a float32 in [0, 1)."""
    return ((words >> shift) & _FIELD).float().mul_(2.0**-24)


def _mix(words: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place; int64 products wrap as uint64 ones do."""
    for shift, factor in _MIX:
        words ^= _shift_right(words, shift)
        words *= _signed(factor)
    words ^= _shift_right(words, 31)
    return words


def _shift_right(words: Tensor, shift: int) -> Tensor:
    """Logical shift: int64 shifts copy the sign bit, which the mask removes."""
    return (words >> shift).bitwise_and_((1 << (64 - shift)) - 1)


def _mix_int(word: int) -> int:
    """`_mix` of one Python integer in [0, 2**64)."""
    for shift, factor in _MIX:
        word = (word ^ (word >> shift)) * factor & _WORD
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    """The int64 with the same bits as `word` in [0, 2**64)."""
    return word - (1 << 64) if word >> 63 else word
