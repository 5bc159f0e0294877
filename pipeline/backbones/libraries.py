"""Networks by name: torchvision's, timm's, and any that a Python function returns."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import nn

from pipeline.backbones.backbone import Backbone, ImageInput
from pipeline.backbones.names import DEFAULT, split_name
from pipeline.backbones.weights import check_names, load_state, read_state
from pipeline.errors import ConfigError, did_you_mean, first_line, how_to_install


def open_backbone(name: str, weights: str | None, *, size: int | None = None, partial: bool = False) -> Backbone:
    """A network without its classifier, with weights.

    Parameters
    ----------
    name : str
        `torchvision:NAME`, `timm:NAME` or `python:MODULE:FUNCTION`. The function takes no arguments and returns a
        module, with its weights, or a `Backbone`.
    weights : str or None
        None leaves the network as it is made, "default" takes the library's own, else the path or URI of a state dict.
    size : int, optional
        Side of the images in pixels, for transformers of timm, which are built for one size.
    partial : bool
        Accept a state dict with missing or unexpected names.

    Raises
    ------
    ConfigError
        For an unknown name, weights that cannot be had, or that do not fit.
    """
    library, inner = split_name(name)
    if library == "torchvision":
        return _torchvision(inner, weights, partial)
    if library == "timm":
        return _timm(inner, weights, size, partial)
    return _python(inner, weights, partial)


def library_input(name: str, weights: str | None) -> ImageInput | None:
    """The images that a network of a library expects, without its weights; None where it is untrained."""
    library, inner = split_name(name)
    if library == "python":
        return _python(inner, None, partial=False).input
    if weights is None:
        return None
    return _torchvision_input(inner) if library == "torchvision" else _timm_input(_import_timm(), inner)


def _torchvision(name: str, weights: str | None, partial: bool) -> Backbone:
    expected = _torchvision_input(name)
    try:
        module = torchvision.models.get_model(name, weights="DEFAULT" if weights == DEFAULT else None)
    except OSError as error:
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        raise ConfigError(_no_download(f"torchvision:{name}", error, url)) from None
    head = _last_linear(module, name)
    module.set_submodule(head, nn.Identity())
    if weights not in (None, DEFAULT):
        load_state(module, _without(read_state(weights), head), weights, partial=partial)
    return Backbone(module, None if weights is None else expected)


def _torchvision_input(name: str) -> ImageInput:
    known = torchvision.models.list_models(torchvision.models)
    if name not in known:
        raise ConfigError(f"model.encoder=torchvision:{name} is unknown to torchvision{did_you_mean(name, known)}")
    transforms: Any = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    size, resize = transforms.crop_size[0], transforms.resize_size[0]
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    return ImageInput(size, mean, std, transforms.interpolation.value, size / resize)


def _last_linear(module: nn.Module, name: str) -> str:
    """The name of the classifier: the last linear layer."""
    layers = [key for key, child in module.named_modules() if isinstance(child, nn.Linear)]
    if not layers:
        raise ConfigError(f"model.encoder=torchvision:{name} has no linear classifier to take off; choose another")
    return layers[-1]


def _without(state: Mapping[str, Any], *prefixes: str) -> dict[str, Any]:
    """A state dict without the classifier, which features do not need."""
    return {key: value for key, value in state.items() if not key.startswith(tuple(f"{p}." for p in prefixes))}


def _import_timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError:
        raise ConfigError(f"model.encoder=timm:... needs the library timm; {how_to_install('timm')}") from None


def _timm(name: str, weights: str | None, size: int | None, partial: bool) -> Backbone:
    timm = _import_timm()
    expected = _timm_input(timm, name)
    sized = {} if size in (None, expected.size) else {"img_size": size}
    if weights in (None, DEFAULT):
        return Backbone(_create_timm(timm, name, sized, pretrained=weights == DEFAULT), expected if weights else None)
    module, state = _create_timm(timm, name, {}), read_state(weights)
    heads: Any = timm.get_pretrained_cfg(name).classifier or ()
    state = _without(state, *([heads] if isinstance(heads, str) else heads))
    check_names(module.state_dict(), state, weights, partial=partial)
    # timm resamples a transformer's position embedding where the images have another size
    overlay = {"state_dict": state, "num_classes": 0}
    return Backbone(_create_timm(timm, name, sized, pretrained=True, pretrained_cfg_overlay=overlay), expected)


def _create_timm(timm: Any, name: str, sized: dict[str, Any], **options: Any) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=0, **sized, **options)
    except TypeError:  # networks of convolutions take any size and no `img_size`
        return timm.create_model(name, num_classes=0, **options)
    except OSError as error:
        repository = timm.get_pretrained_cfg(name).hf_hub_id
        raise ConfigError(_no_download(f"timm:{name}", error, f"model.safetensors of {repository}")) from None


def _timm_input(timm: Any, name: str) -> ImageInput:
    config = timm.get_pretrained_cfg(name)
    if config is None:
        hint = did_you_mean(name.partition(".")[0], timm.list_models())
        raise ConfigError(f"model.encoder=timm:{name} is unknown to timm {timm.__version__}{hint}")
    return ImageInput(config.input_size[-1], config.mean, config.std, config.interpolation, config.crop_pct)


def _python(name: str, weights: str | None, partial: bool) -> Backbone:
    if weights == DEFAULT:
        raise ConfigError(
            f"model.weights=default does not go with model.encoder=python:{name}, whose function gives the weights; "
            "leave model.weights unset, or give a file"
        )
    made = _call(name)
    backbone = made if isinstance(made, Backbone) else Backbone(made)
    if not isinstance(backbone.module, nn.Module):
        raise ConfigError(f"model.encoder=python:{name} returned {type(made).__name__}; return a torch.nn.Module")
    if weights is not None:
        load_state(backbone.module, read_state(weights), weights, partial=partial)
    return backbone


def _call(name: str) -> Any:
    """What the function that MODULE:FUNCTION names returns."""
    module, _, function = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"model.encoder=python:{name} cannot be imported ({first_line(error)}); give MODULE:FUNCTION, importable "
            "on every node"
        ) from error
    return made()


def _no_download(encoder: str, error: OSError, file: str) -> str:
    return (
        f"the weights of model.encoder={encoder} cannot be downloaded ({first_line(error)}). Where there is a network, "
        f"fetch {file}; then set model.weights to the file's path"
    )
