"""The two views against torchvision, and their keys: same for any split of a batch, other for each epoch and view."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from pipeline.config.models import ViewsConfig
from pipeline.data.colour import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, gaussian_blur
from pipeline.data.views import TwoViews

NOTHING = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "horizontal_flip": 0, "jitter": 0, "grayscale": 0}
CROP_ONLY = {"horizontal_flip": 0, "jitter": 0, "grayscale": 0}
EVERYTHING = {"rotation": 20, "vertical_flip": 0.5, "blur": 0.5}


def views_of(size: int = 32, seed: int = 0, **policy: object) -> TwoViews:
    """Views that are not normalised, so that they compare with pixels in [0, 1]."""
    return TwoViews(ViewsConfig(size=size, **policy), [0.0] * 3, [1.0] * 3, seed)


def noise(count: int, height: int = 32, width: int = 32, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, high, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def positions(count: int, height: int, width: int) -> Tensor:
    """Images that hold each pixel's x in channel 0 and its y in channel 1."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y, torch.zeros_like(x)), dim=2).to(torch.uint8).expand(count, -1, -1, -1)


def boxes(policy: dict[str, object], height: int, width: int, count: int) -> tuple[Tensor, Tensor]:
    """Boxes (x, y) and (width, height) of the first view's crops of samples 0..count-1, read off images of positions.

    Width or height is negative where the crop is flipped, and x or y then is the far edge. The boxes do not depend on
    the size of the view, which is chosen here so that crops are enlarged: positions are then exact inside the view.
    """
    size = max(height, width)
    view = views_of(size, **policy)(positions(count, height, width), torch.arange(count), 0)[0] * 255
    low, high = size // 4, size - 1 - size // 4  # far enough from the crop's edges
    lines = view[:, 0, low], view[:, 1, :, low]
    extent = torch.stack([(line[:, high] - line[:, low]) / (high - low) * size for line in lines], dim=1)
    start = torch.stack([line[:, low] + 0.5 for line in lines], dim=1) - extent * (low + 0.5) / size
    return start, extent


def channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float() / 255


def test_without_augmentation_the_image_is_returned_exactly():
    images = noise(5)
    for view in views_of(**NOTHING)(images, torch.arange(5), 3):
        assert torch.equal(view, channels_first(images))
        assert view.is_contiguous()


def test_flips_are_exact():
    images = noise(5)
    both, _ = views_of(**{**NOTHING, "horizontal_flip": 1, "vertical_flip": 1})(images, torch.arange(5), 0)
    assert torch.equal(both, channels_first(images).flip(2, 3))
    horizontal, _ = views_of(**{**NOTHING, "horizontal_flip": 1})(images, torch.arange(5), 0)
    assert torch.equal(horizontal, channels_first(images).flip(3))


def test_views_are_normalised_float32():
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    images = noise(4)
    views = TwoViews(ViewsConfig(size=32, **NOTHING), mean, std, 0)
    expected = tv.normalize(channels_first(images), mean, std)
    for view in views(images, torch.arange(4), 0):
        assert view.dtype == torch.float32
        assert view.device == images.device
        torch.testing.assert_close(view, expected)


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (20, 28, 32), (96, 64, 24), (120, 120, 16)])
def test_crops_equal_torchvision(height, width, size):
    """On noise, enlarged and shrunk: the hardest image for any difference in weights or borders."""
    start, extent = boxes(CROP_ONLY, height, width, 40)
    images = noise(40, height, width)
    actual, _ = views_of(size, **CROP_ONLY)(images, torch.arange(40), 0)
    for view, image, (x, y), (w, h) in zip(actual, channels_first(images), start, extent, strict=True):
        box = [round(float(value)) for value in (y, x, h, w)]
        expected = tv.resized_crop(image, *box, [size, size], antialias=True)
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96)])
def test_crops_are_distributed_as_torchvision_s(height, width):
    count = 1500
    start, extent = boxes(CROP_ONLY, height, width, count)
    torch.manual_seed(0)
    transform, like = v2.RandomResizedCrop(32), [torch.zeros(3, height, width)]
    theirs = [transform.make_params(like) for _ in range(count)]
    ours = {"left": start[:, 0], "top": start[:, 1], "width": extent[:, 0], "height": extent[:, 1]}
    for name, values in ours.items():
        assert torch.allclose(values, values.round(), atol=1e-2)  # whole pixels
        assert stats.ks_2samp(values.round(), [params[name] for params in theirs]).pvalue > 1e-3, name
    area, ratio = extent.prod(1) / (height * width), extent[:, 0] / extent[:, 1]
    assert 0.06 < area.min() < 0.12
    assert stats.ks_2samp(ratio.round(decimals=3), [round(p["width"] / p["height"], 3) for p in theirs]).pvalue > 1e-3


def test_a_crop_that_never_fits_becomes_the_largest_of_its_ratio():
    start, extent = boxes(NOTHING, 24, 36, 300)
    assert (extent.round() == 24).all()
    assert set(start[:, 0].round().tolist()) == set(range(13))


def test_flip_rates():
    _, extent = boxes({**CROP_ONLY, "horizontal_flip": 0.5, "vertical_flip": 0.2}, 32, 32, 3000)
    horizontal, vertical = (extent < 0).float().mean(0)
    assert abs(horizontal - 0.5) < 0.04
    assert abs(vertical - 0.2) < 0.04
    assert abs(torch.corrcoef((extent < 0).float().T)[0, 1]) < 0.08


def test_rotation_equals_torchvision_about_the_crop_s_centre():
    """Square crops at random places of wide images; compared where no image border is near."""
    index, size = torch.arange(400), 24
    views = views_of(size, **{**NOTHING, "rotation": 30})
    view = views(positions(400, size, 40), index, 0)[0] * 255
    middle = view[:, :2, 11:13, 11:13].mean((2, 3))
    across = (view[:, :2, 11:13, 12] - view[:, :2, 11:13, 11]).mean(2)
    angles = torch.atan2(across[:, 1], across[:, 0]).rad2deg()
    assert stats.kstest(angles, stats.uniform(-30, 60).cdf).pvalue > 1e-3
    images = noise(400, size, 40)
    actual, _ = views(images, index, 0)
    disc = slice(7, 17)
    for n in range(30):
        center = [float(middle[n, 0] + 0.5), float(middle[n, 1] + 0.5)]
        turned = tv.rotate(channels_first(images)[n], float(angles[n]), tv.InterpolationMode.BILINEAR, center=center)
        left = round(center[0] - size / 2)
        torch.testing.assert_close(actual[n, :, disc, disc], turned[:, disc, left + 7 : left + 17], atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (adjust_brightness, tv.adjust_brightness, 0, 2),
        (adjust_contrast, tv.adjust_contrast, 0, 2),
        (adjust_saturation, tv.adjust_saturation, 0, 2),
        (adjust_hue, tv.adjust_hue, -0.5, 0.5),
    ],
)
def test_colour_operations_equal_torchvision_for_each_sample(ours, theirs, low, high):
    images = channels_first(noise(32, 12, 10))
    images[0], images[1], images[2] = 0.0, 1.0, 0.5
    images[3, 1] = images[3, 0]  # ties of the largest channel
    factors = torch.linspace(low, high, 32)
    expected = torch.stack([theirs(image, float(factor)) for image, factor in zip(images, factors, strict=True)])
    torch.testing.assert_close(ours(images, factors), expected, atol=5e-6, rtol=0)


def test_jitter_probability_and_strength():
    images = noise(2000, 4, 4, high=128)  # brightness up to 1.9 saturates nothing
    views = views_of(4, **{**NOTHING, "jitter": 0.6, "brightness": 0.9, "contrast": 0, "saturation": 0, "hue": 0})
    view, _ = views(images, torch.arange(2000), 0)
    original = channels_first(images)
    factor = view.sum((1, 2, 3)) / original.sum((1, 2, 3))
    changed = (factor - 1).abs() > 1e-6
    assert abs(changed.float().mean() - 0.6) < 0.05
    assert torch.equal(view[~changed], original[~changed])
    assert stats.kstest(factor[changed], stats.uniform(0.1, 1.8).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("name", "strength", "low"),
    [("brightness", 0.4, 0.6), ("contrast", 0.4, 0.6), ("saturation", 0.3, 0.7), ("hue", 0.1, -0.1)],
)
def test_each_jitter_is_uniform_over_its_range(name, strength, low):
    """Two shades of red; each operation changes one difference in proportion, read off the view."""
    images = (
        torch.tensor([[128, 64, 64], [64, 32, 32]], dtype=torch.uint8).repeat_interleave(2, 0).expand(2000, 4, 4, 3)
    )
    only = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, name: strength}
    view = views_of(4, **{**NOTHING, "jitter": 1, **only})(images, torch.arange(2000), 0)[0] * 255
    (red, dark), (green, _), (blue, _) = view[:, :, 0, [0, 3]].permute(1, 2, 0)
    changed = {"brightness": red / 128, "contrast": (red - dark) / 64, "saturation": (red - green) / 64}
    drawn = changed.get(name, (green - blue) / 64 / 6)
    assert stats.kstest(drawn, stats.uniform(low, 2 * strength).cdf).pvalue > 1e-3


def test_jitter_applies_all_four():
    images = noise(8)
    full, _ = views_of(**{**NOTHING, "jitter": 1})(images, torch.arange(8), 0)
    for name in ("brightness", "contrast", "saturation", "hue"):
        without, _ = views_of(**{**NOTHING, "jitter": 1, name: 0})(images, torch.arange(8), 0)
        assert ((full - without).abs().amax((1, 2, 3)) > 1e-3).all(), name
    assert full.min() >= 0
    assert full.max() <= 1


def test_grayscale():
    images = noise(2000, 4, 4)
    view, _ = views_of(4, **{**NOTHING, "grayscale": 0.2})(images, torch.arange(2000), 0)
    gray = (view[:, 0] == view[:, 1]).flatten(1).all(1)
    assert abs(gray.float().mean() - 0.2) < 0.04
    torch.testing.assert_close(view[gray], tv.rgb_to_grayscale(channels_first(images)[gray], 3), atol=2e-4, rtol=0)
    assert torch.equal(view[~gray], channels_first(images)[~gray])


def test_blur():
    images = noise(1000, 12, 12)
    index = torch.arange(1000)
    always, _ = views_of(12, **{**NOTHING, "blur": 1, "blur_sigma": (1.3, 1.3)})(images, index, 0)
    expected = tv.gaussian_blur(channels_first(images), [9, 9], [1.3, 1.3])
    torch.testing.assert_close(always, expected, atol=1e-5, rtol=0)
    some, _ = views_of(12, **{**NOTHING, "blur": 0.3, "blur_sigma": (0.5, 2)})(images, index, 0)
    blurred = (some != channels_first(images)).flatten(1).any(1)
    assert abs(blurred.float().mean() - 0.3) < 0.06
    assert some[blurred].std((1, 2, 3)).std() > 0.01  # a sigma of each sample's own


def test_each_image_is_blurred_by_its_own_sigma():
    images, sigma = channels_first(noise(5, 20, 12)), torch.tensor([0.1, 0.4, 1.0, 2.0, 1e-30])
    expected = [
        tv.gaussian_blur(image[None], [13, 13], [max(float(s), 0.01)] * 2)[0]
        for image, s in zip(images, sigma, strict=True)
    ]
    torch.testing.assert_close(gaussian_blur(images, sigma, 6), torch.stack(expected), atol=1e-6, rtol=0)


def test_a_blur_wider_than_the_view_still_works():
    images = noise(4, 4, 4)
    view, _ = views_of(4, **{**NOTHING, "blur": 1, "blur_sigma": (5, 9)})(images, torch.arange(4), 0)
    assert torch.isfinite(view).all()
    assert (view.std((2, 3)) < channels_first(images).std((2, 3))).all()


@pytest.mark.parametrize("policy", [{}, EVERYTHING], ids=["simclr", "everything"])
def test_any_split_and_order_of_a_batch_gives_the_same_rows(policy):
    images, index = noise(60), torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:60]
    views = views_of(**policy)
    whole = views(images, index, 4)
    again = views_of(**policy)(images, index, 4)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    for view in (0, 1):
        assert torch.equal(whole[view], again[view])
        torch.testing.assert_close(views(images[order], index[order], 4)[view], whole[view][order], atol=1e-6, rtol=0)
        for workers in (2, 7, 60):
            parts = [views(images[rank::workers], index[rank::workers], 4)[view] for rank in range(workers)]
            for rank, part in enumerate(parts):
                torch.testing.assert_close(part, whole[view][rank::workers], atol=1e-6, rtol=0)


def test_views_epochs_seeds_and_indices_differ():
    images, index = noise(1).expand(20, -1, -1, -1), torch.arange(20)
    first, second = views_of()(images, index, 0)
    assert (first != second).flatten(1).any(1).all()
    assert (first[1:] != first[:-1]).flatten(1).any(1).all()
    for other in (views_of()(images, index, 1), views_of(seed=1)(images, index, 0)):
        assert (first != other[0]).flatten(1).any(1).all()
        assert (second != other[1]).flatten(1).any(1).all()


@pytest.mark.parametrize("images", [noise(3).float(), noise(3)[0], noise(3).permute(0, 3, 1, 2)])
def test_other_images_are_errors(images):
    with pytest.raises(ValueError, match="uint8 of shape"):
        views_of()(images, torch.arange(3), 0)


def test_other_arguments_are_errors():
    with pytest.raises(ValueError, match="one for each image"):
        views_of()(noise(3), torch.arange(4), 0)
    with pytest.raises(ValueError, match="mean is"):
        TwoViews(ViewsConfig(size=32), [0.5], [0.5] * 3, 0)


def test_no_value_of_the_batch_reaches_the_host_on_cuda():
    """Tensors without data stand in for a GPU's: whatever would wait for a value raises."""
    with FakeTensorMode():
        images = torch.empty(6, 40, 36, 3, dtype=torch.uint8, device="cuda")
        views = views_of(**EVERYTHING)(images, torch.empty(6, dtype=torch.int64, device="cuda"), 0)
        assert all(view.device.type == "cuda" and view.shape == (6, 3, 32, 32) for view in views)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_gives_the_same_views_without_a_sync():
    images, index = noise(64), torch.arange(64)
    views = views_of(**EVERYTHING)
    expected = views(images, index, 0)
    images, index = images.cuda(), index.cuda()
    views(images, index, 0)  # copies the constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = views(images, index, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-3, rtol=0)
