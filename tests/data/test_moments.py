"""Mean and deviation without cancellation."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from PIL import Image

from pipeline.build import ROUNDING_STD
from pipeline.data.moments import Moments


def of(pixels: np.ndarray) -> Moments:
    return Moments.of(Image.fromarray(pixels))


@pytest.mark.parametrize("value", [0, 1, 77, 128, 255])
def test_a_constant_channel_has_deviation_zero_exactly(value: int) -> None:
    """Whatever the sizes of the images and the order in which they are merged."""
    random = np.random.default_rng(0)
    parts = []
    for _ in range(300):
        height, width = random.integers(1, 50, 2)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels[..., 2] = value
        parts.append(of(pixels))
    one = reduce(Moments.merged, parts, Moments())
    two = reduce(Moments.merged, parts[:100]).merged(reduce(Moments.merged, parts[100:]))
    for moments in (one, two):
        assert moments.mean[2] == value
        assert moments.deviation[2] == 0
        assert moments.deviation[0] > 50


def test_images_weigh_the_same_whatever_their_size() -> None:
    random = np.random.default_rng(1)
    images = [random.integers(0, 256, (size, size + 1, 3), dtype=np.uint8) for size in (1, 2, 30, 31)]
    moments = reduce(Moments.merged, map(of, images), Moments())
    means = np.mean([image.mean((0, 1)) for image in images], axis=0)
    squares = np.mean([np.square(image.astype(float)).mean((0, 1)) for image in images], axis=0)
    np.testing.assert_allclose(moments.mean, means, rtol=1e-12)
    np.testing.assert_allclose(moments.deviation, np.sqrt(squares - means**2), rtol=1e-12)
    assert Moments.model_validate_json(moments.model_dump_json()) == moments
    assert Moments().merged(Moments()) == Moments()


def test_integer_sums_do_not_overflow() -> None:
    """The square of a sum of grey levels would, in 64 bits, from some 12 million pixels on."""
    image = Image.new("RGB", (6000, 4000), (255, 254, 0))
    assert Moments.of(image).deviation == (0, 0, 0)


def test_rounding_alone_is_below_the_deviation_of_a_channel_that_varies() -> None:
    one_in_two = np.repeat([77, 78], 50).std() / 255
    one_in_a_thousand = np.repeat([77, 78], [999, 1]).std() / 255
    assert one_in_a_thousand < ROUNDING_STD < one_in_two
