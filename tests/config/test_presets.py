"""Presets hold what their headers claim."""

from __future__ import annotations

import pytest

from pipeline.config.loading import load_config, preset_names


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name: str) -> None:
    assert load_config(name).data.path == f"data/{name}"


def test_uc_merced_is_at_the_reference_settings() -> None:
    """Views of 32 pixels cropped from the full-size image, by the authors' configuration."""
    config = load_config("uc-merced")
    assert (config.data.image_size, config.views.size, config.views.crop_scale) == (256, 32, (0.08, 1.0))
    assert (config.views.vertical_flip, config.views.blur, config.views.horizontal_flip) == (0.0, 0.0, 0.5)
    assert (config.model.encoder, config.model.small_stem) == ("resnet18", True)
    optim = config.optim
    assert (optim.batch_size, optim.lr, optim.weight_decay) == (256, 0.05, 5e-4)
    assert (optim.epochs, optim.warmup_epochs) == (1000, 200)
