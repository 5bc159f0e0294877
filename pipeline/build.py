"""Build the method's objects, which know nothing of configurations, from a configuration."""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from pipeline.backbones.backbone import feature_size, without_dropout
from pipeline.backbones.libraries import library_input, open_backbone
from pipeline.backbones.names import is_library_name
from pipeline.collectives import world_size
from pipeline.config.models import MethodConfig, RunConfig
from pipeline.data.preprocess import Preprocess
from pipeline.data.shards import Manifest
from pipeline.data.views import TwoViews
from pipeline.errors import ConfigError
from pipeline.method.digpro import DigPro, DigProSettings
from pipeline.method.encoder import Standardize, build_encoder, build_head, build_predictor
from pipeline.method.optimizer import build_optimizer
from pipeline.method.precision import multiplies_bfloat16
from pipeline.method.schedules import Schedules, build_schedules, scaled_lr
from pipeline.progress import Echo

REFERENCE = {  # numbers that are fixed in the reference code
    "reference_lead_momentum": 0.99,
    "reference_empty_logit": -10.0,
    "reference_raw_groups": True,
}
DEFAULT_SIZE = 32  # pixels; the reference's view size
ROUNDING_STD = 1 / 255 / 12**0.5  # caused by rounding to 8 bits alone; a channel that varies less is constant


def settle_images(config: RunConfig) -> RunConfig:
    """Fill in the image settings that a configuration leaves open: as the backbone expects them, else the defaults.

    Mean and deviation of the channels stay open for a network that was not pretrained: it uses the data set's.

    Raises
    ------
    ConfigError
        When the backbone is unknown or expects images prepared in an unsupported way, or its library is not installed.
    """
    name, data, views = config.model.encoder, config.data, config.views
    own = library_input(name, config.model.weights) if is_library_name(name) else None
    size = views.size or (own.size if own else DEFAULT_SIZE)
    settled: dict[str, Any] = {"image_size": DEFAULT_SIZE, "fit": "stretch", "interpolation": "bilinear"}
    if own is not None:
        if own.unsupported and None in (data.image_size, data.fit, data.interpolation, views.size):
            raise ConfigError(
                f"model.encoder={name}: {own.unsupported}, which is not supported; choose another network, or set "
                "views.size, data.image_size, data.fit and data.interpolation to prepare images in another way"
            )
        settled = {"image_size": round(size / own.crop), "fit": own.fit, "interpolation": own.interpolation}
        settled |= {"mean": own.mean, "std": own.std}
    missing = {key: value for key, value in settled.items() if getattr(data, key) is None}
    return config.model_copy(
        update={"data": data.model_copy(update=missing), "views": views.model_copy(update={"size": size})}
    )


def open_encoder(config: RunConfig, echo: Echo | None = None) -> tuple[nn.Module, int]:
    """The encoder with its weights, and its feature size; reports the prefix of the weights' names in a file."""
    torch.manual_seed(config.seed)
    s, size = config.model, config.views.size
    if not is_library_name(s.encoder):
        return build_encoder(s.encoder, small_stem=s.small_stem)
    assert size is not None
    backbone = open_backbone(s.encoder, s.weights, size=size, partial=s.partial_weights, prefix=s.weights_prefix)
    if backbone.prefix and echo is not None:
        echo(f"model.weights={s.weights}: using the network whose parameter names begin with {backbone.prefix}")
    module = without_dropout(backbone.module)
    return module, feature_size(module, size, s.encoder)


def without_weights(config: RunConfig) -> RunConfig:
    """The configuration without weights to download or read, for a backbone that gets them from elsewhere."""
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": None})})


def build_model(
    config: RunConfig, num_clusters: int, device: torch.device, *, cached_size: int | None = None
) -> DigPro:
    """A new model on a device, initialised from the run's seed.

    With `cached_size` it takes cached backbone features of that size instead of images.
    """
    torch.manual_seed(config.seed)
    encoder, size = open_encoder(config) if cached_size is None else (Standardize(cached_size), cached_size)
    s = config.model
    projector = build_head(size, s.projector_hidden, s.feature_size)
    predictor = build_predictor(s.feature_size, s.predictor_hidden)
    model = DigPro(
        encoder,
        projector,
        predictor,
        s.feature_size,
        method_settings(config.method, num_clusters),
        autocast=autocast_dtype(config, device),
    )
    model.to(device, torch.float64 if config.optim.precision == "float64" else torch.float32)
    if device.type == "cpu":  # where it is faster
        model.use_channels_last()
    if config.optim.compile:
        model.compile_networks()
    return model


def method_settings(method: MethodConfig, num_clusters: int) -> DigProSettings:
    """The method's own settings: fields with the same name are copied."""
    shared = method.model_dump(include={field.name for field in fields(DigProSettings)})
    return DigProSettings(**shared | {"num_clusters": num_clusters} | (REFERENCE if method.reference else {}))


def data_parallel(model: DigPro) -> nn.Module:
    """The model wrapped in DistributedDataParallel; the model itself when there is one worker.

    DDP does not broadcast buffers: BatchNorm's are equal anyway, and each worker keeps its own part of the bank.
    """
    if world_size() == 1:
        return model
    with warnings.catch_warnings():  # the flag is deprecated since torch 2.14, without a replacement that does the same
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def autocast_dtype(config: RunConfig, device: torch.device) -> torch.dtype | None:
    """bfloat16 where configured, or where `auto` finds it fast; None means the precision of the weights."""
    fast = config.optim.precision == "auto" and multiplies_bfloat16(device)
    return torch.bfloat16 if fast or config.optim.precision == "bfloat16" else None


def build_run_optimizer(config: RunConfig, model: DigPro) -> SGD:
    """SGD as configured; the schedules set the rates of each step."""
    o = config.optim
    return build_optimizer(
        model,
        lr=scaled_lr(o.lr, o.batch_size),
        momentum=o.momentum,
        weight_decay=o.weight_decay,
        decay_bias_and_norm=o.decay_bias_and_norm,
        encoder_lr_factor=o.encoder_lr_factor,
    )


def build_run_schedules(config: RunConfig, steps: int) -> Schedules:
    """Schedules of the whole run, with `steps` per epoch."""
    o, m = config.optim, config.method
    return build_schedules(
        scaled_lr(o.lr, o.batch_size),
        epochs=o.epochs,
        steps_per_epoch=steps,
        warmup_epochs=o.warmup_epochs,
        predictor_lr_factor=o.predictor_lr_factor,
        target_momentum=m.target_momentum,
        increase_momentum=m.increase_momentum,
        reference_long_cosine=m.reference,
    )


def build_views(config: RunConfig, manifest: Manifest) -> TwoViews:
    """The augmentation, normalised like the evaluation view."""
    return TwoViews(config.views, *channel_statistics(config, manifest), config.seed)


def build_preprocess(config: RunConfig, manifest: Manifest) -> Preprocess:
    """The evaluation view, normalised like the augmented ones."""
    assert config.views.size is not None
    return Preprocess(config.views.size, *channel_statistics(config, manifest), crop=config.data.fit == "crop")


def channel_statistics(config: RunConfig, manifest: Manifest) -> tuple[list[float], list[float]]:
    """Mean and deviation of the channels: as configured, or the data set's; a constant channel has deviation 0."""
    own = manifest.statistics
    mean, std = config.data.mean or own.mean, config.data.std or own.std
    return list(mean), [value if value > ROUNDING_STD else 0.0 for value in std]
