"""Frozen backbones on one CPU core: onnxruntime, as `embed`, `assign` and `evaluate` use it, against PyTorch.

    python -m benchmarks.engines
    python -m benchmarks.engines --encoders timm:vit_small_patch16_224

The networks have random weights: speed does not depend on them. PyTorch runs in channels_last and in batches of 8,
which is fastest for it; bfloat16 is measured too if the CPU supports it in hardware. Exit status 1 when
onnxruntime is less than three times as fast as PyTorch for the backbone of the preset `photos`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import conclude, rate, speedup, time_interleaved
from pipeline.backbones.efficientnet_lite import efficientnet_lite0
from pipeline.backbones.libraries import open_backbone
from pipeline.backbones.onnx_program import OnnxProgram, to_onnx
from pipeline.method.precision import multiplies_bfloat16

SIZE, BATCH, IMAGES = 224, 8, 32
PRESET = "EfficientNet-Lite0"
CLAIM = 3.0


def network(name: str) -> nn.Module:
    """A backbone in evaluation mode."""
    if name == PRESET:
        return efficientnet_lite0().module.eval()
    return open_backbone(name, None, size=SIZE).module.eval()


def encoders(module: nn.Module, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ways to encode the images, by name."""
    program = OnnxProgram(to_onnx(module, images, ["features"]))
    module = module.to(memory_format=torch.channels_last)

    def by_torch(bfloat16: bool) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            blocks = images.split(BATCH)
            return torch.cat([module(block.contiguous(memory_format=torch.channels_last)) for block in blocks])

    ways = {
        "onnxruntime": lambda: torch.cat([program(block)[0] for block in images.split(BATCH)]),
        "torch": lambda: by_torch(False),
    }
    return ways | ({"bfloat16": lambda: by_torch(True)} if multiplies_bfloat16(torch.device("cpu")) else {})


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of each way in each round, after one that is not counted."""
    images = torch.rand(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    seconds = time_interleaved(encoders(network(name), images), rounds + 1)
    counted = {way: each[1:] for way, each in seconds.items()}
    speeds = {way: rate(IMAGES, each) for way, each in counted.items()}
    print(f"{name:>36} " + "  ".join(f"{way} {speed:,.0f}/s" for way, speed in speeds.items()), end="  ")
    print(f"onnxruntime over torch {speedup(counted, of='onnxruntime', over='torch'):.2f}", flush=True)
    return {"seconds": counted, "images_per_second": speeds}


def main() -> int:
    """Measure, print, and judge the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    others = ["torchvision:resnet18", "torchvision:resnet50", "timm:vit_tiny_patch16_224"]
    parser.add_argument("--encoders", nargs="+", default=[PRESET, *others])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the results here, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {name: measure(name, args.rounds) for name in args.encoders}
    conclude(results, args.out)
    holds = PRESET not in results or speedup(results[PRESET]["seconds"], of="onnxruntime", over="torch") >= CLAIM
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
