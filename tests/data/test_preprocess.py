"""The view of evaluation against torchvision, its constant channels, and what survives an export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from pipeline.data.preprocess import Preprocess

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def noise(count: int, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (20, 28, 32), (96, 64, 24)])
def test_it_equals_torchvision(height: int, width: int, size: int) -> None:
    images = noise(4, height, width)
    before = images.clone()
    view = Preprocess(size, MEAN, STD)(images)
    expected = tv.normalize(tv.resize(channels_first(images), [size, size], antialias=True), MEAN, STD)
    torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)
    assert view.is_contiguous()
    assert images.equal(before)


def test_a_constant_channel_is_only_centred() -> None:
    images = noise(4)
    images[..., 1] = 51
    view = Preprocess(32, (0.5, 0.2, 0.3), (0.2, 0.0, 0.4))(images)
    assert view[:, 1].abs().max() < 1e-6
    expected = Preprocess(32, (0.5, 0.2, 0.3), (0.2, 1.0, 0.4))(images)
    assert view.equal(expected)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), STD, "mean is"),
        ((0.5, float("nan"), 0.5), STD, "mean is"),
        (MEAN, (0.2, float("inf"), 0.4), "std is"),
        (MEAN, (0.2, -0.3, 0.4), r"std is \[0.2, -0.3, 0.4\]; .* 0 or more"),
    ],
)
def test_bad_statistics_are_errors(mean: tuple[float, ...], std: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess(32, mean, std)


@pytest.mark.parametrize("images", [noise(3).float(), noise(3)[0], noise(3).permute(0, 3, 1, 2)])
def test_other_images_are_errors(images: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8 of shape"):
        Preprocess(32, MEAN, STD)(images)


def test_a_saved_state_carries_the_statistics() -> None:
    other = Preprocess(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    other.load_state_dict(Preprocess(32, MEAN, STD).state_dict())
    assert other(noise(2)).equal(Preprocess(32, MEAN, STD)(noise(2)))


@pytest.mark.parametrize("height", [16, 32])
def test_an_exported_program_computes_the_same_for_any_batch(tmp_path: Path, height: int) -> None:
    preprocess = Preprocess(16, MEAN, STD)
    batch = {"images": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(preprocess, (noise(2, height),), dynamic_shapes=batch), tmp_path / "p.pt2")
    program = torch.export.load(tmp_path / "p.pt2").module()
    for count in (1, 5):
        assert program(noise(count, height)).equal(preprocess(noise(count, height)))
