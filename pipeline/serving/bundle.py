"""A trained model as a folder that needs none of our training code: a `torch.export` program and its card.

`pipeline.serving.export` writes it. This module travels with models in MLflow, so it imports little.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from pipeline.inference.card import CARD, ModelCard

PROGRAM = "model.pt2"


def read_bundle(folder: Path, device: torch.device) -> tuple[nn.Module, ModelCard]:
    """The program as a module on a device, and the card."""
    return load_program(str(folder / PROGRAM), device), ModelCard.model_validate_json((folder / CARD).read_text())


def load_program(path: str, device: torch.device) -> nn.Module:
    """A program as a module that takes images on `device`; `Module.to` would leave its constants on the CPU."""
    program = torch.export.load(path)
    return (program if device.type == "cpu" else move_to_device_pass(program, str(device))).module()
