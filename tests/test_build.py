"""From configurations to the method's objects: settings that must arrive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.build import (
    autocast_dtype,
    build_model,
    build_preprocess,
    build_run_optimizer,
    build_run_schedules,
    settle_images,
)
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.method.batchnorm import GlobalBatchNorm
from tests.helpers.manifests import manifest

CPU = torch.device("cpu")
TINY = ["model.projector_hidden=8", "model.predictor_hidden=8", "model.feature_size=4"]


def config(*overrides: str) -> RunConfig:
    return load_config("digits", [*TINY, *overrides])


def test_the_seed_alone_decides_the_weights() -> None:
    first, again, other = (
        build_model(config(f"seed={seed}"), 3, CPU).networks.online.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_network_of_a_library_is_fine_tuned_without_draws_and_with_the_batchnorm_of_all_workers() -> None:
    settled = settle_images(config("model.encoder=python:tests.helpers.backbones:with_input", "views.size=null"))
    model = build_model(settled, 3, CPU)
    modules = list(model.networks.online.encoder.modules())
    assert [module.p for module in modules if isinstance(module, nn.Dropout)] == [0.0]
    assert sum(isinstance(module, GlobalBatchNorm) for module in modules) == 1
    optimizer = build_run_optimizer(config("optim.encoder_lr_factor=0.1"), model)
    assert [group["lr_factor"] for group in optimizer.param_groups] == [0.1, 0.1, 1, 1, 1, 1]


def test_what_is_left_open_about_the_images_is_settled() -> None:
    open_ = ["views.size=null", "data.image_size=null"]
    ours = settle_images(config(*open_))
    assert (ours.data.image_size, ours.views.size, ours.data.fit, ours.data.mean) == (32, 32, "stretch", None)
    library = ["model.encoder=torchvision:resnet18", "model.weights=/w.pth"]
    own = settle_images(config(*open_, *library))
    assert (own.data.image_size, own.views.size, own.data.fit) == (256, 224, "crop")
    assert own.data.mean == (0.485, 0.456, 0.406)
    smaller = settle_images(config(*open_, *library, "views.size=96", "data.fit=stretch", "data.std=[1, 1, 1]"))
    assert (smaller.data.image_size, smaller.data.fit, smaller.data.std) == (110, "stretch", (1, 1, 1))
    assert settle_images(own) == own


def test_the_reference_behaviour_reaches_the_method() -> None:
    ours = build_model(config(), 3, CPU).settings
    assert (ours.reference_lead_momentum, ours.reference_raw_groups) == (None, False)
    assert ours.reference_empty_logit == float("-inf")
    reference = build_model(config("method.reference=true"), 3, CPU).settings
    assert (reference.reference_lead_momentum, reference.reference_raw_groups) == (0.99, True)
    assert reference.reference_empty_logit == -10.0


def test_the_references_cosine_ends_above_its_end() -> None:
    few = ("optim.epochs=10", "optim.warmup_epochs=5")
    assert build_run_schedules(config(*few), 4).lr[-1] == pytest.approx(0, abs=1e-12)
    assert build_run_schedules(config(*few, "method.reference=true"), 4).lr[-1] > 0.01


def test_rates_scale_with_the_batch() -> None:
    small, large = (build_run_schedules(config(f"optim.batch_size={size}"), 4).lr for size in (64, 128))
    np.testing.assert_allclose(large, 2 * small)


def test_every_weight_is_learnt_once() -> None:
    model = build_model(config(), 3, CPU)
    groups = build_run_optimizer(config(), model).param_groups
    learnt = [id(p) for group in groups for p in group["params"]]
    assert sorted(learnt) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_bias_and_norm_can_be_left_out_of_the_decay() -> None:
    chosen = config("optim.decay_bias_and_norm=false", "optim.weight_decay=0.5")
    for group in build_run_optimizer(chosen, build_model(chosen, 3, CPU)).param_groups:
        assert all((p.dim() > 1) == (group["weight_decay"] == 0.5) for p in group["params"])


@pytest.mark.parametrize(("flags", "expected"), [({}, None), ({"avx512_bf16": True}, torch.bfloat16)])
def test_auto_is_bfloat16_on_a_processor_that_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert autocast_dtype(config(), CPU) is expected
    assert autocast_dtype(config("optim.precision=bfloat16"), CPU) is torch.bfloat16
    assert autocast_dtype(config("optim.precision=float32"), CPU) is None
    assert autocast_dtype(config("optim.precision=float64"), CPU) is None


def test_a_constant_channel_is_centred_only() -> None:
    images = torch.full((1, 16, 16, 3), 255, dtype=torch.uint8)
    view = build_preprocess(config(), manifest())(images)
    assert view[0, :, 0, 0].tolist() == pytest.approx([2.5, 6.0, 0.7])
