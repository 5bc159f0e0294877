"""Schedules against the reference's arrays, and what the corrected cosine does instead."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.method.schedules import build_schedules, scaled_lr
from tests.helpers.golden import golden

SCHEDULES = golden("schedules")


@pytest.mark.parametrize("case", ["ref_rsod", "ref_tiny", "eta_min", "no_warmup", "fixed_pred"])
def test_schedules_match_the_reference(case: str) -> None:
    cfg = {k.split("/")[-1]: v.item() for k, v in SCHEDULES.items() if k.startswith(f"{case}/cfg/")}
    ours = build_schedules(
        cfg["learning_rate"],
        epochs=int(cfg["epochs"]),
        steps_per_epoch=int(cfg["iter_per_epoch"]),
        warmup_epochs=int(cfg["warmup_epochs"]),
        final_lr=cfg["learning_rate"] * cfg["learning_eta_min"],
        predictor_lr_factor=cfg["lambda_predictor_lr"],
        fixed_predictor_lr=bool(cfg["fix_predictor_lr"]),
        target_momentum=cfg["momentum_base"],
        increase_momentum=bool(cfg["momentum_increase"]),
        reference_long_cosine=True,
    )
    steps = SCHEDULES[f"{case}/n_iter"].numpy() - 1
    for name, found in (("lr", ours.lr), ("predictor_lr", ours.predictor_lr), ("ema_m", ours.target_momentum)):
        np.testing.assert_allclose(found[steps], SCHEDULES[f"{case}/{name}"].numpy(), rtol=1e-9, atol=1e-15)


def test_the_corrected_cosine_ends_at_its_end() -> None:
    settings = {"epochs": 20, "steps_per_epoch": 5, "warmup_epochs": 4, "final_lr": 0.001}
    rates = build_schedules(0.1, **settings).lr
    assert rates[-1] == pytest.approx(0.001)
    assert rates.max() == pytest.approx(0.1)
    assert build_schedules(0.1, **settings, reference_long_cosine=True).lr[-1] > 0.005


def test_lr_is_given_for_a_batch_of_256() -> None:
    assert scaled_lr(0.05, 1024) == pytest.approx(0.2)
