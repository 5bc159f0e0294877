"""Views per second and core: `pipeline.data.views` in batches against torchvision's transforms image by image.

    python -m benchmarks.views    # 30 seconds on one core of a busy machine

Both create SimCLR's views of 32-pixel images, and the views of the preset digits (crop and rotation only). torchvision
runs on PIL images, as in the reference code and most others, and on uint8 tensors, which is faster.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.v2.functional import to_pil_image

from benchmarks.baselines.transforms import torchvision_view
from benchmarks.loop import MEAN, STD
from benchmarks.measure import conclude, rate, speedup, time_interleaved
from pipeline.config.models import ViewsConfig
from pipeline.data.views import TwoViews

PRESETS = {
    "cifar10": ViewsConfig(size=32),
    "digits": ViewsConfig(size=16, crop_scale=(0.5, 1), rotation=10, horizontal_flip=0, jitter=0, grayscale=0),
}


def compare(policy: ViewsConfig, batch: int, rounds: int) -> dict[str, Any]:
    """Views per second of ours and of torchvision on PIL images and on tensors; the ratios of ours to each."""
    ours = TwoViews(policy, MEAN, STD, seed=0)
    images = torch.randint(0, 256, (batch, ours.size, ours.size, 3), dtype=torch.uint8)
    tensors = list(images.permute(0, 3, 1, 2).contiguous())
    pictures = [to_pil_image(tensor) for tensor in tensors]
    index = torch.arange(batch)
    per_pil, per_tensor = torchvision_view(policy, from_pil=True), torchvision_view(policy, from_pil=False)
    blocks = {
        "ours": lambda: [ours(images, index, epoch) for epoch in range(10)],  # ten times: as long as the other blocks
        "torchvision_pil": lambda: torch.stack([per_pil(p) for p in pictures for _ in (0, 1)]),
        "torchvision_tensor": lambda: torch.stack([per_tensor(t) for t in tensors for _ in (0, 1)]),
    }
    time_interleaved(blocks, 1)  # warm-up: the first calls allocate
    seconds = time_interleaved(blocks, rounds)
    seconds["ours"] = [s / 10 for s in seconds["ours"]]
    speeds: dict[str, Any] = {name: rate(2 * batch, seconds[name]) for name in blocks}
    return speeds | {f"over_{name}": speedup(seconds, "ours", name) for name in list(blocks)[1:]}


def main() -> int:
    """Compare with the views of two presets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"arguments": " ".join(sys.argv[1:])}
    for name, policy in PRESETS.items():
        speeds = results[name] = compare(policy, args.batch, args.rounds)
        print(
            f"{name:8s} {speeds['ours']:,.0f} views/s per core; torchvision on PIL {speeds['torchvision_pil']:,.0f} "
            f"(ratio {speeds['over_torchvision_pil']:.1f}), on tensors {speeds['torchvision_tensor']:,.0f} "
            f"(ratio {speeds['over_torchvision_tensor']:.1f})"
        )
    conclude(results, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
