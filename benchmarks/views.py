"""Views per second and core: `pipeline.data.views` in batches against torchvision's transforms image by image.

    python -m benchmarks.views    # 30 seconds on one core of a busy machine

Both make SimCLR's views of 32-pixel images (and, with rotation, the plain set of the preset digits): torchvision on
PIL images, which is how the reference code and most others do it, and on uint8 tensors, which is its faster way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from benchmarks.measure import conclude, interleaved, rate, speedup
from pipeline.config.models import ViewsConfig
from pipeline.data.views import TwoViews

MEAN, STD = [0.5] * 3, [0.25] * 3
PRESETS = {
    "cifar10": ViewsConfig(size=32),
    "digits": ViewsConfig(size=16, crop_scale=(0.5, 1), rotation=10, horizontal_flip=0, jitter=0, grayscale=0),
}


def torchvision_view(policy: ViewsConfig, *, from_pil: bool) -> Callable[[Any], torch.Tensor]:
    """The same policy as a torchvision transform of one image."""
    jitter = v2.ColorJitter(policy.brightness, policy.contrast, policy.saturation, policy.hue)
    steps: list[Any] = [v2.RandomRotation(policy.rotation)] if policy.rotation else []
    steps += [v2.RandomResizedCrop(policy.size, policy.crop_scale, policy.crop_ratio, antialias=True)]
    steps += [v2.RandomHorizontalFlip(policy.horizontal_flip)] if policy.horizontal_flip else []
    steps += [v2.RandomApply([jitter], policy.jitter)] if policy.jitter else []
    steps += [v2.RandomGrayscale(policy.grayscale)] if policy.grayscale else []
    steps += [v2.PILToTensor()] if from_pil else []
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def compare(policy: ViewsConfig, batch: int, rounds: int) -> dict[str, Any]:
    """Views per second of the three ways, and how many times faster ours is than each of the others."""
    images = torch.randint(0, 256, (batch, policy.size, policy.size, 3), dtype=torch.uint8)
    tensors = list(images.permute(0, 3, 1, 2).contiguous())
    pictures = [to_pil_image(tensor) for tensor in tensors]
    ours, index = TwoViews(policy, MEAN, STD, seed=0), torch.arange(batch)
    per_pil, per_tensor = torchvision_view(policy, from_pil=True), torchvision_view(policy, from_pil=False)
    blocks = {
        "ours": lambda: [ours(images, index, epoch) for epoch in range(10)],  # as long as a block of the others
        "torchvision_pil": lambda: torch.stack([per_pil(p) for p in pictures for _ in (0, 1)]),
        "torchvision_tensor": lambda: torch.stack([per_tensor(t) for t in tensors for _ in (0, 1)]),
    }
    interleaved(blocks, 1)  # the first calls allocate
    seconds = interleaved(blocks, rounds)
    seconds["ours"] = [s / 10 for s in seconds["ours"]]
    figures: dict[str, Any] = {name: rate(2 * batch, seconds[name]) for name in blocks}
    return figures | {f"over_{name}": speedup(seconds, "ours", name) for name in list(blocks)[1:]}


def main() -> int:
    """Compare under the settings of two presets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"arguments": " ".join(sys.argv[1:])}
    for name, policy in PRESETS.items():
        figures = results[name] = compare(policy, args.batch, args.rounds)
        print(
            f"{name:8s} {figures['ours']:,.0f} views/s a core; torchvision on PIL {figures['torchvision_pil']:,.0f} "
            f"(ratio {figures['over_torchvision_pil']:.1f}), on tensors {figures['torchvision_tensor']:,.0f} "
            f"(ratio {figures['over_torchvision_tensor']:.1f})"
        )
    conclude(results, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
