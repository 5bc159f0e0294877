"""A trained model as a folder that needs none of our training code: a `torch.export` program and its card."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from pipeline.inference.card import CARD, ModelCard

PROGRAM = "model.pt2"


def write_bundle(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write `PROGRAM` and `CARD` into a folder."""
    torch.export.save(export_program(model, card), folder / PROGRAM)
    (folder / CARD).write_text(card.model_dump_json(indent=1))


def export_program(model: nn.Module, card: ModelCard) -> torch.export.ExportedProgram:
    """The program of a model on the CPU in evaluation mode, for any number of images.

    It takes uint8 images (B, S, S, 3), decoded as the card says, and returns similarities (B, K) and features (B, D).
    """
    example = example_images(card)
    return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def example_images(card: ModelCard, count: int = 2) -> Tensor:
    """Random images uint8 (count, S, S, 3); an export needs two, because it would treat a count of 1 as a constant."""
    size = card.decoding["size"]
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def read_bundle(folder: Path, device: torch.device) -> tuple[nn.Module, ModelCard]:
    """The program as a module on a device, and the card."""
    return load_program(str(folder / PROGRAM), device), ModelCard.model_validate_json((folder / CARD).read_text())


def load_program(path: str, device: torch.device) -> nn.Module:
    """A program as a module that takes images on `device`; `Module.to` would leave its constants on the CPU."""
    program = torch.export.load(path)
    return (program if device.type == "cpu" else move_to_device_pass(program, str(device))).module()
