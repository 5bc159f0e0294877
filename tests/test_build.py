"""From configurations to the method's objects: settings that must arrive."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.build import autocast_dtype, build_model, build_preprocess, build_run_optimizer, build_run_schedules
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
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


def test_reference_switches_reach_the_method() -> None:
    ours = build_model(config(), 3, CPU).settings
    assert (ours.reference_lead_momentum, ours.reference_raw_groups) == (None, False)
    assert ours.reference_empty_logit == float("-inf")
    names = ("double_momentum", "raw_groups", "empty_logit")
    reference = build_model(config(*(f"method.reference_{name}=true" for name in names)), 3, CPU).settings
    assert (reference.reference_lead_momentum, reference.reference_raw_groups) == (0.99, True)
    assert reference.reference_empty_logit == -10.0


def test_the_long_cosine_ends_above_its_end() -> None:
    few = ("optim.epochs=10", "optim.warmup_epochs=5")
    assert build_run_schedules(config(*few), 4).lr[-1] == pytest.approx(0, abs=1e-12)
    assert build_run_schedules(config(*few, "method.reference_long_cosine=true"), 4).lr[-1] > 0.01


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


def test_precision_is_float32_on_a_cpu_unless_asked_for() -> None:
    assert autocast_dtype(config(), CPU) is None
    assert autocast_dtype(config("optim.precision=bfloat16"), CPU) is torch.bfloat16


def test_a_constant_channel_is_centred_only() -> None:
    images = torch.full((1, 16, 16, 3), 255, dtype=torch.uint8)
    view = build_preprocess(config(), manifest())(images)
    assert view[0, :, 0, 0].tolist() == pytest.approx([2.5, 6.0, 0.7])
