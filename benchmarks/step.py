"""Speed of DigPro's step alone: float32 against bfloat16, fused against separate views; check of golden vectors.

    python -m benchmarks.step                          # ResNet-18
    python -m benchmarks.step --encoder tiny --batch 128 --compile
    python -m benchmarks.step --batch 256 --golden     # on a GPU

Needs only torch and torchvision. Each step is complete, from two views to the optimizer's update, on synthetic 32-pixel
images. `fused` passes both views through a network in one call, and all four inputs through the predictor in one call.
`separate` does as the reference code: one call per view and network, four calls of the predictor, torch's BatchNorm.
Both compute the same numbers, which is checked first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.measure import conclude, rate, speedup, time_interleaved
from pipeline.method.batchnorm import GlobalBatchNorm
from pipeline.method.digpro import DigPro, DigProSettings
from pipeline.method.encoder import build_encoder, build_head, build_predictor
from pipeline.method.optimizer import build_optimizer, set_learning_rates, step_if_finite

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
FEATURES, HIDDEN, CLUSTERS = 256, 4096, 10
BLOCK_STEPS = 4


class SeparateViews(DigPro):
    """The same step as in the reference: one forward pass for every view, network and predictor input."""

    def _features(self, network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
        with self._mixed_precision(first.device):
            return torch.stack([network(first), network(second)]).float()

    def _predictions(self, online: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        noisy = online if noise is None else online + noise
        with self._mixed_precision(online.device):
            passes = [(self.predictor(clean), self.predictor(n)) for clean, n in zip(online, noisy, strict=True)]
        first, second = (torch.stack(predictions).float() for predictions in zip(*passes, strict=True))
        return first, second


def use_torch_batchnorm(module: nn.Module) -> None:
    """Replace every global BatchNorm by a newly initialised one of torch."""
    for name, child in module.named_children():
        if isinstance(child, GlobalBatchNorm):
            flat = isinstance(module, nn.Sequential) and isinstance(module[0], nn.Linear)
            setattr(module, name, (nn.BatchNorm1d if flat else nn.BatchNorm2d)(len(child.weight)))
        else:
            use_torch_batchnorm(child)


def build_step(
    args: argparse.Namespace, kind: type[DigPro], autocast: torch.dtype | None, *, compiled: bool = False
) -> Callable[[], Tensor]:
    """A function that runs one training step and returns its loss."""
    model = build_model(kind, args.encoder, autocast).to(args.device)
    if compiled:
        model.compile_networks()
    optimizer = build_optimizer(model, lr=0.05 * args.batch / 256, momentum=0.9, weight_decay=5e-4)
    views = torch.randn(2, args.batch, 3, 32, 32, device=args.device)
    noise = 0.001 * torch.randn(2, args.batch, FEATURES, device=args.device)
    labels = torch.arange(args.batch, device=args.device) % CLUSTERS
    return lambda: take_step(model, optimizer, views, labels, noise)


def build_model(
    kind: type[DigPro],
    encoder: str,
    autocast: torch.dtype | None,
    *,
    clusters: int = CLUSTERS,
    hidden: int = HIDDEN,
    small_stem: bool = True,
) -> DigPro:
    """A new model with the weights of seed 0; separate views have torch's BatchNorm, as in the reference."""
    torch.manual_seed(0)
    body, size = build_encoder(encoder, small_stem=small_stem)
    heads = build_head(size, hidden, FEATURES), build_predictor(FEATURES, hidden)
    model = kind(body, *heads, FEATURES, DigProSettings(clusters), autocast=autocast)
    if kind is SeparateViews:
        use_torch_batchnorm(model)
    elif not torch.cuda.is_available():
        model.use_channels_last()  # as a run does on a CPU
    return model


def take_step(
    model: nn.Module,
    optimizer: SGD,
    views: Tensor | Sequence[Tensor],
    labels: Tensor,
    noise: Tensor | None,
    **options: Any,
) -> Tensor:
    """Losses, gradients and one move of the optimizer, from two views (B, 3, H, W); returns the loss.

    `noise` (2, B, D) and `options` are those of DigPro's forward pass.
    """
    total = model(*views, labels, noise=noise, **{"target_momentum": 0.996} | options).total
    optimizer.zero_grad()
    total.backward()
    step_if_finite(optimizer)
    return total.detach()


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Images/s of fused and separate steps in float32 and bfloat16, and their ratios."""
    kinds = {"fused": DigPro, "separate": SeparateViews}
    precisions = {"float32": None, "bfloat16": torch.bfloat16}
    steps = {f"{k}_{p}": build_step(args, kinds[k], precisions[p]) for k in kinds for p in precisions}
    if args.compile:
        steps["compiled_float32"] = build_step(args, DigPro, None, compiled=True)
    losses = {name: [float(step()) for _ in range(2)] for name, step in steps.items()}
    torch.testing.assert_close(losses["fused_float32"], losses["separate_float32"], rtol=1e-3, atol=1e-3)
    blocks = {name: lambda step=step: [step() for _ in range(BLOCK_STEPS)] for name, step in steps.items()}
    seconds = time_interleaved(blocks, args.rounds, args.device)
    return {
        "images_per_second": {name: rate(BLOCK_STEPS * args.batch, seconds[name]) for name in steps},
        "fused_over_separate_float32": speedup(seconds, of="fused_float32", over="separate_float32"),
        "fused_over_separate_bfloat16": speedup(seconds, of="fused_bfloat16", over="separate_bfloat16"),
        "bfloat16_over_float32": speedup(seconds, of="fused_bfloat16", over="fused_float32"),
        "compiled_over_fused_float32": speedup(seconds, of="compiled_float32", over="fused_float32")
        if args.compile
        else None,
        "losses": losses,
        "seconds": seconds,
        "gpu_peak_gib": {name: peak_gib(step) for name, step in steps.items()} if args.device == "cuda" else None,
    }


def peak_gib(step: Callable[[], Tensor]) -> float:
    """Peak memory of one step, beyond what is already allocated on the GPU."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def golden_error(device: str, dtype: torch.dtype) -> float:
    """Largest relative error of our losses on a device, over the five golden steps of the reference code."""
    inputs, expected = np.load(GOLDEN / "full_inputs.npz"), np.load(GOLDEN / "full_steps_reset.npz")

    def tensor(name: str, *at: int) -> Tensor:
        values = torch.from_numpy(inputs[name][at])
        return values.to(device, dtype) if values.is_floating_point() else values.to(device)

    model = golden_model(inputs).to(device, dtype)
    optimizer = build_optimizer(model, lr=0.05, momentum=0.9, weight_decay=5e-4)
    totals = []
    for step, warmup in enumerate(expected["losses"][:, 4]):
        set_learning_rates(optimizer, *expected["lr"][step].tolist())
        losses = model(
            tensor("im_q", step),
            tensor("im_k", step),
            tensor("psedo_labels")[tensor("indices", step)],
            noise=None if warmup else 0.001 * tensor("noise", step),
            warmup=bool(warmup),
            target_momentum=0.996,
            group_centers=tensor("reset_centres") if expected["n_iter"][step] == 7 else None,
        )
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
    reference = expected["losses"][:, list(expected["loss_columns"]).index("total")]
    return float(np.max(np.abs(np.array(totals) / reference - 1)))


def golden_model(inputs: Any) -> DigPro:
    """The small model of the golden vectors, with the reference's initial weights."""
    convolutions = [(3, 6, 1), (6, 10, 2)]
    layers = [
        layer
        for i, o, stride in convolutions
        for layer in (nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    ]
    encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    settings = DigProSettings(7, reference_lead_momentum=0.99, reference_empty_logit=-10.0, reference_raw_groups=True)
    model = DigPro(encoder, build_head(10, 24, 8), build_head(8, 24, 8), 8, settings).double()
    names = {"encoder_q": "networks.online.encoder", "projector_q": "networks.online.projector", "smog": "groups"}
    names |= {"encoder_k": "networks.target.encoder", "projector_k": "networks.target.projector"}
    for key in inputs:
        part, _, rest = key.removeprefix("init/").partition(".")
        name = f"{names.get(part, part)}.{rest.replace('group_features', 'features')}"
        if key.startswith("init/") and "num_batches" not in key:
            model.state_dict(keep_vars=True)[name].data.copy_(torch.from_numpy(inputs[key]))
    return model


def main() -> int:
    """Measure the speed; with --golden, check the golden vectors first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18", choices=["tiny", "resnet18", "resnet34", "resnet50"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; a single thread is timed by CPU time")
    parser.add_argument(
        "--compile", action="store_true", help="also a step by torch.compile, as `optim.compile` has it"
    )
    parser.add_argument("--golden", action="store_true", help="first check the reference code's losses on the device")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {"arguments": " ".join(sys.argv[1:]), "device": args.device}
    if args.golden:
        torch.backends.cudnn.allow_tf32 = False
        errors = {str(d): golden_error(args.device, d) for d in (torch.float64, torch.float32)}
        results["golden_errors"], passed = errors, errors["torch.float64"] < 1e-9 and errors["torch.float32"] < 5e-5
        print(f"golden vectors on {args.device}: relative errors {errors}  {'PASS' if passed else 'FAIL'}")
        if not passed:
            return 1
        torch.backends.cudnn.allow_tf32 = True
    results |= compare(args)
    for name in ("images_per_second", "gpu_peak_gib"):
        print(f"{name}: " + ", ".join(f"{k} {v:,.2f}" for k, v in (results[name] or {}).items()))
    for name, ratio in results.items():
        if "_over_" in name and ratio is not None:
            print(f"{name}: {ratio:.2f}")
    conclude(results, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
