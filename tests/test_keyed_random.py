"""Counter-based random numbers: keyed by the sample alone, uniform, normal, and without visible correlation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pipeline.keyed_random import Stream, normal, uniform

INDEX = torch.arange(4000)
KEYS = {"base": (0, 0, 0), "seed": (1, 0, 0), "epoch": (0, 1, 0), "stream": (0, 0, 1), "swapped": (0, 2, 1)}


def draw(key: str) -> Tensor:
    seed, epoch, stream = KEYS[key]
    return uniform(seed, epoch, INDEX, stream, 8)


@pytest.mark.parametrize("function", [uniform, normal])
def test_rows_depend_on_the_index_alone(function):
    whole = function(3, 5, INDEX, 1, 7)
    order = torch.randperm(len(INDEX), generator=torch.Generator().manual_seed(0))
    assert torch.equal(function(3, 5, INDEX[order], 1, 7), whole[order])
    parts = [function(3, 5, part, 1, 7) for part in INDEX.split(313)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_first_columns_do_not_depend_on_size(size):
    assert torch.equal(uniform(0, 0, INDEX, 0, size), uniform(0, 0, INDEX, 0, 16)[:, :size])
    assert normal(0, 0, INDEX, 0, size).shape == (len(INDEX), size)


def test_numbers_are_pinned():
    """A change of the numbers would change every run: the SplitMix64 chain in Python integers gives the same."""
    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(word: int) -> int:
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & mask
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB & mask
        return word ^ (word >> 31)

    key = 0
    for part in (7, 11, 2):
        key = mix((key ^ part) + golden & mask)
    indices = [0, 1, 2**40, -1]
    expected = [
        [(mix(mix((i * golden ^ key) & mask) + c * golden & mask) >> 40) / 2**24 for c in (1, 2, 3)] for i in indices
    ]
    assert uniform(7, 11, torch.tensor(indices), 2, 3).double().tolist() == expected


def test_streams_keep_their_numbers():
    """A run draws the same after an upgrade only if no stream is renumbered; new purposes are added at the end."""
    expected = {
        "VIEW_A": 0,
        "VIEW_B": 1,
        "NOISE_A": 2,
        "NOISE_B": 3,
        "CACHED_PAIR": 4,
        "ROW_GROUP_ORDER": 9,
        "ROW_ORDER": 10,
        "DRAWS": 11,
    }
    expected |= {"SWEEP": 7, "HELD_OUT": 8}
    assert dict(Stream.__members__) == expected


def test_the_streams_of_one_image_are_unrelated():
    draws = {stream: uniform(0, 0, INDEX, stream, 8) for stream in Stream}
    for first, second in itertools.combinations(draws.values(), 2):
        assert (first == second).float().mean() < 1e-3
        assert abs(np.corrcoef(first.flatten(), second.flatten())[0, 1]) < 5 / first.numel() ** 0.5


def test_uniform_is_uniform_with_24_exact_bits():
    numbers = uniform(0, 0, torch.arange(100_000), 0, 10)
    assert numbers.dtype == torch.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    mantissa = numbers.double() * 2**24
    assert torch.equal(mantissa, mantissa.round())
    bits = (mantissa.long().flatten()[:, None] >> torch.arange(24)) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / 1000  # 5 standard errors of a million draws
    for column in numbers.numpy().T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(KEYS, 2)))
def test_other_keys_give_unrelated_numbers(first, second):
    a, b = draw(first), draw(second)
    assert (a == b).float().mean() < 1e-3
    assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 5 / a.numel() ** 0.5


def test_neighbouring_indices_and_columns_are_unrelated():
    numbers = uniform(0, 0, torch.arange(50_000), 0, 8).numpy()
    limit = 5 / len(numbers) ** 0.5
    assert np.abs(np.corrcoef(numbers.T) - np.eye(8)).max() < limit
    assert np.abs(np.corrcoef(numbers[1:].T, numbers[:-1].T)[:8, 8:]).max() < limit


def test_normal_is_normal_and_finite():
    numbers = normal(0, 0, torch.arange(100_000), 0, 9)
    assert numbers.dtype == torch.float32
    assert numbers.shape == (100_000, 9)
    assert torch.isfinite(numbers).all()
    assert numbers.abs().max() < 5.8
    assert abs(numbers.mean()) < 5e-3
    assert abs(numbers.var() - 1) < 1e-2
    for column in numbers.numpy().T:
        assert stats.kstest(column, "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(numbers.numpy().T) - np.eye(9)).max() < 0.02


@pytest.mark.parametrize("word", [0, -1])
def test_normal_is_finite_at_both_ends_of_the_words(monkeypatch, word):
    monkeypatch.setattr("pipeline.keyed_random._words", lambda *key: torch.full((2, 3), word))
    assert torch.isfinite(normal(0, 0, INDEX[:2], 0, 6)).all()


@pytest.mark.parametrize("seed", [-1, 2**63, 2**80])
def test_any_seed_is_taken(seed):
    assert 0.4 < uniform(seed, 0, INDEX, 0, 4).mean() < 0.6


@pytest.mark.parametrize(
    "index", [torch.zeros(3), torch.zeros(3, dtype=torch.int32), torch.zeros(3, 1, dtype=torch.int64)]
)
def test_other_indices_are_errors(index):
    with pytest.raises(ValueError, match="int64"):
        uniform(0, 0, index, 0, 2)


def test_empty_batch():
    assert uniform(0, 0, INDEX[:0], 0, 3).shape == (0, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_bits_on_cuda():
    assert torch.equal(uniform(1, 2, INDEX.cuda(), 3, 40).cpu(), uniform(1, 2, INDEX, 3, 40))
    torch.testing.assert_close(normal(1, 2, INDEX.cuda(), 3, 40).cpu(), normal(1, 2, INDEX, 3, 40))
