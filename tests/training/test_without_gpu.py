"""Whole steps on tensors without data: nothing in them waits for the device, mixes devices, or computes in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.build import build_run_optimizer
from pipeline.collectives import RowRange
from pipeline.data.loader import Inputs, ResidentImages
from pipeline.data.shards import Manifest
from pipeline.training.estep import encode_all
from pipeline.training.mstep import train_step
from pipeline.training.run import Run
from pipeline.training.state import PseudoLabels, TrainState
from tests.helpers.fake_gpu import DEVICE, Float64, empty_like, to_fake_gpu, without_data
from tests.helpers.small_run import IMAGES, digits, small_run
from tests.helpers.workers import Workers

EVERY_VIEW = ["views.jitter=0.8", "views.hue=0.1", "views.grayscale=0.2", "views.blur=0.5", "views.rotation=20"]
VARIANTS = {
    "paper": [],
    "resnet": ["model.encoder=resnet18", *EVERY_VIEW],
    "reference": ["method.reference=true"],
    "lead": ["method.latent_noise=0", "optim.decay_bias_and_norm=false"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Manifest]:
    return digits(tmp_path_factory.mktemp("digits"))


def _to_device(run: Run) -> None:
    """Move the run's model and images to the device."""
    model, config = run.state.model, run.job.config
    to_fake_gpu(model)
    run.step_model = model  # DistributedDataParallel needs gradients with data
    for constants in (run.feed.preprocess, run.feed.views._preprocess):  # which a GPU gets at its first step
        to_fake_gpu(constants)
    run.state = TrainState(model, build_run_optimizer(config, model))
    labels = torch.empty(IMAGES, dtype=torch.int32, device=DEVICE)
    run.state.pseudo = PseudoLabels(labels, model.groups.features, RowRange(0, IMAGES, IMAGES))
    assert isinstance(run.feed.inputs.source, ResidentImages)
    source = ResidentImages(empty_like(run.feed.inputs.source.images), run.feed.inputs.own, 50)
    run.feed = replace(run.feed, inputs=Inputs(run.job.plan.order, source, torch.device(DEVICE)))


def _train(rank: int, data: tuple[Tensor, Manifest], settings: list[str]) -> list[str]:
    run = small_run(*data, "optim.warmup_epochs=0", *settings)
    with without_data(), Float64() as wide:
        _to_device(run)
        for batch in run.feed.inputs.epoch(0):
            train_step(run, batch)
    assert run.state.step == 4
    assert all(weight.device.type == DEVICE for weight in run.state.model.state_dict().values())
    return sorted(wide.found)


def _encode(rank: int, data: tuple[Tensor, Manifest]) -> list[str]:
    run = small_run(*data, "model.encoder=resnet18")
    with without_data(), Float64() as wide:
        _to_device(run)
        features = encode_all(run.state.model, run.feed.inputs, run.feed.preprocess)
    assert features.device.type == DEVICE
    assert features.shape == (IMAGES, 16)
    return sorted(wide.found)


def test_the_features_of_the_estep_neither(fake_gpu: Workers, data: tuple[Tensor, Manifest]) -> None:
    assert fake_gpu.run(_encode, data) == [[]]


def _do_what_waits(rank: int, number: int) -> list[str]:
    with without_data(), Float64() as wide:
        x = torch.empty(3, 4, device=DEVICE, requires_grad=True)
        doubled = 2 * x.double()
        waits = (lambda: doubled.sum().item(), lambda: doubled[doubled > 0], lambda: doubled + torch.empty(3, 4))
        if number < len(waits):
            waits[number]()
    return sorted(wide.found)


@pytest.mark.parametrize("number", range(3))
def test_what_waits_or_mixes_is_found(fake_gpu: Workers, number: int) -> None:
    with pytest.raises(AssertionError, match=r"DataDependent|DynamicOutputShape|DeviceMismatch"):
        fake_gpu.run(_do_what_waits, number)


def test_what_computes_in_float64_is_found(fake_gpu: Workers) -> None:
    assert fake_gpu.run(_do_what_waits, 3)[0] == ["aten._to_copy.default", "aten.mul.Tensor"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_step_neither_waits_nor_mixes_devices(
    fake_gpu: Workers, data: tuple[Tensor, Manifest], variant: str
) -> None:
    assert fake_gpu.run(_train, data, VARIANTS[variant]) == [[]]


@pytest.mark.parametrize("variant", ["paper", "resnet"])
def test_nor_does_that_of_one_of_two_workers(
    one_of_two_fake_gpus: Workers, data: tuple[Tensor, Manifest], variant: str
) -> None:
    assert one_of_two_fake_gpus.run(_train, data, VARIANTS[variant]) == [[]]
