"""Presets hold what their headers claim."""

from __future__ import annotations

from importlib import resources

import pytest

from pipeline.config.loading import load_config, preset_names
from pipeline.config.models import MethodConfig, ViewsConfig
from pipeline.data.class_lists import class_list_names

# By the authors' configurations: clusters, side of a view, batch, epochs of warm-up.
REFERENCE = {
    "rsod": (4, 32, 256, 50),
    "uc-merced": (21, 32, 256, 200),
    "siri-whu": (12, 32, 256, 200),
    "imagenet-10": (10, 96, 128, 50),
    "imagenet-dogs": (15, 96, 128, 50),
    "tiny-imagenet": (200, 32, 1024, 50),
}
RESETS = {"tiny-imagenet": 20}  # by a comment of the authors' code; elsewhere as many steps as clusters
STRONG = [name for name in preset_names() if name.endswith("-strong")]
PUBLISHED = [name for name in preset_names() if name.removesuffix("-strong") in class_list_names()]


def header(name: str) -> str:
    text = resources.files("pipeline.presets").joinpath(f"{name}.yaml").read_text()
    return "\n".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name: str) -> None:
    assert load_config(name).data.path == f"data/{name.removesuffix('-strong')}"


@pytest.mark.parametrize("name", REFERENCE)
def test_presets_are_at_the_reference_settings(name: str) -> None:
    config = load_config(name)
    optim = config.optim
    found = (config.method.num_clusters, config.views.size, optim.batch_size, optim.warmup_epochs)
    assert found == REFERENCE[name]
    assert (optim.epochs, optim.lr, optim.weight_decay) == (1000, 0.05, 5e-4)
    assert (optim.momentum, optim.predictor_lr_factor) == (0.9, 10.0)
    assert (config.model.encoder, config.model.small_stem, config.model.feature_size) == ("resnet18", True, 256)
    assert config.views == ViewsConfig(size=config.views.size)  # the defaults are the reference's
    same_speed = 0.986  # of the target, in one update a step: the reference makes two
    assert config.method == MethodConfig(
        num_clusters=found[0], reset_every=RESETS.get(name), target_momentum=same_speed
    )
    assert config.estep.every == 1


def test_the_defaults_are_the_reference_settings() -> None:
    views, method = ViewsConfig(), MethodConfig()
    assert (views.crop_scale, views.horizontal_flip, views.vertical_flip, views.blur) == ((0.08, 1.0), 0.5, 0.0, 0.0)
    jitter = (views.jitter, views.brightness, views.contrast, views.saturation, views.hue, views.grayscale)
    assert jitter == (0.8, 0.4, 0.4, 0.4, 0.1, 0.2)
    weights = (method.instance_weight, method.prototype_weight, method.group_weight)
    assert (*weights, method.prototype_temperature, method.latent_noise) == (1.0, 0.1, 0.3, 0.5, 0.001)
    assert (method.target_momentum, method.increase_momentum) == (0.996, False)


@pytest.mark.parametrize("name", STRONG)
def test_the_stronger_recipes_are_those_of_propos(name: str) -> None:
    config, photographs = load_config(name), name.startswith("imagenet")
    assert (config.model.encoder, config.method.increase_momentum) == ("resnet34", True)
    assert (config.optim.batch_size, config.optim.warmup_epochs, config.optim.epochs) == (256, 50, 1000)
    found = (config.views.size, config.views.blur, config.model.small_stem)
    assert found == ((224, 0.5, False) if photographs else (32, 0.0, True))


@pytest.mark.parametrize("name", STRONG)
def test_a_stronger_recipe_shares_the_data_of_its_preset(name: str) -> None:
    config, plain = load_config(name), load_config(name.removesuffix("-strong"))
    assert config.data.path == plain.data.path
    assert config.method.num_clusters == plain.method.num_clusters


@pytest.mark.parametrize("name", PUBLISHED)
def test_headers_say_what_one_needs(name: str) -> None:
    plain, text = name.removesuffix("-strong"), header(name)
    assert f"Command: digpro train --preset {name}\n" in text
    assert "Not yet run to the end by us" in text
    if name in STRONG:
        assert f"Source and ingest: as for the preset {plain}, whose data it shares." in text
    else:
        assert "Source: http" in text
        assert f" data/{name} --classes {name}\n" in text.split("Ingest: digpro ingest ")[1]
