"""Networks by name: torchvision's, timm's, and any that a Python function returns."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from torch import Tensor, nn

from pipeline.backbones.backbone import Backbone, ImageInput, Interpolation
from pipeline.backbones.names import DEFAULT, split_name
from pipeline.backbones.weights import check_names, choose_state, load_state, read_tensors
from pipeline.errors import ConfigError, UserError, did_you_mean, first_line, how_to_install


def open_backbone(
    name: str, weights: str | None, *, size: int | None = None, partial: bool = False, prefix: str | None = None
) -> Backbone:
    """A network without its classifier, with weights.

    Parameters
    ----------
    name : str
        `torchvision:NAME`, `timm:NAME` or `python:MODULE:FUNCTION`. The function takes no arguments and returns a
        module, with its weights, or a `Backbone`.
    weights : str or None
        None keeps the network as created, "default" loads the library's own; else the path or URI of a state dict.
    size : int, optional
        Side of the images in pixels, for transformers of timm, which are built for one size.
    partial : bool
        Accept a state dict with missing or unexpected names.
    prefix : str, optional
        Prefix of the network's names in the state dict; detected if absent.

    Raises
    ------
    ConfigError
        For an unknown name, or weights that cannot be obtained or do not fit.
    """
    library, inner = split_name(name)
    if library == "torchvision":
        return _torchvision(inner, weights, partial, prefix)
    if library == "timm":
        return _timm(inner, weights, size, partial, prefix)
    return _python(inner, weights, partial, prefix)


def library_input(name: str, weights: str | None) -> ImageInput | None:
    """The images that a network of a library expects, without its weights; None where it is untrained."""
    library, inner = split_name(name)
    if library == "python":
        return _python(inner, None).input
    if weights is None:
        return None
    return _torchvision_input(inner) if library == "torchvision" else _timm_input(_import_timm(), inner)


def _torchvision(name: str, weights: str | None, partial: bool, prefix: str | None) -> Backbone:
    import torchvision

    expected = _torchvision_input(name)
    try:
        module = torchvision.models.get_model(name, weights="DEFAULT" if weights == DEFAULT else None)
    except OSError as error:
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        raise ConfigError(_no_download(f"torchvision:{name}", error, url)) from None
    head = _last_linear(module, name)
    module.set_submodule(head, nn.Identity())
    begin = ""
    if weights not in (None, DEFAULT):
        state, begin = _read_state(weights, module, partial, prefix)
        load_state(module, _without(state, head), weights, partial=partial)
    return Backbone(module, None if weights is None else expected, begin)


def _read_state(path: str, module: nn.Module, partial: bool, prefix: str | None) -> tuple[dict[str, Tensor], str]:
    """The tensors of a network in a file, and the prefix of their names there."""
    return choose_state(read_tensors(path), module.state_dict(), path, prefix=prefix, partial=partial)


def _torchvision_input(name: str) -> ImageInput:
    import torchvision

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
        raise ConfigError(f"model.encoder=torchvision:{name} has no linear classifier to remove; choose another")
    return layers[-1]


def _without(state: Mapping[str, Any], *prefixes: str) -> dict[str, Any]:
    """A state dict without the classifier, which features do not need."""
    return {key: value for key, value in state.items() if not key.startswith(tuple(f"{p}." for p in prefixes))}


def _import_timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError:
        raise ConfigError(f"model.encoder=timm:... needs the library timm; {how_to_install('timm')}") from None


def _timm(name: str, weights: str | None, size: int | None, partial: bool, prefix: str | None) -> Backbone:
    timm = _import_timm()
    expected = _timm_input(timm, name)
    built_for = _timm_config(timm, name).input_size[1:]
    sized = {} if size is None or built_for == (size, size) else {"img_size": size}
    if weights in (None, DEFAULT):
        return Backbone(_create_timm(timm, name, sized, pretrained=weights == DEFAULT), expected if weights else None)
    module = _create_timm(timm, name, {})
    state, begin = _read_state(weights, module, partial, prefix)
    heads: Any = timm.get_pretrained_cfg(name).classifier or ()
    state = _without(state, *([heads] if isinstance(heads, str) else heads))
    check_names(module.state_dict(), state, weights, partial=partial)
    # timm resamples a transformer's position embedding where the images have another size
    overlay = {"state_dict": state, "num_classes": 0}
    return Backbone(_create_timm(timm, name, sized, pretrained=True, pretrained_cfg_overlay=overlay), expected, begin)


def _create_timm(timm: Any, name: str, sized: dict[str, Any], **options: Any) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=0, **sized, **options)
    except TypeError:  # convolutional networks take any size, and no `img_size`
        return timm.create_model(name, num_classes=0, **options)
    except OSError as error:
        repository = timm.get_pretrained_cfg(name).hf_hub_id
        raise ConfigError(_no_download(f"timm:{name}", error, f"model.safetensors of {repository}")) from None


def _timm_config(timm: Any, name: str) -> Any:
    """What timm knows about a network and about the weights that its tag names."""
    if "/" in name or name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        known = did_you_mean(name.rpartition("/")[2], timm.list_pretrained())
        raise ConfigError(
            f"model.encoder=timm:{name} is a repository or folder; give the network's name{known}, and as "
            "model.weights the path of the file, or hf://OWNER/REPOSITORY/model.safetensors"
        )
    network, _, tag = name.partition(".")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{network}.*")]
        raise ConfigError(
            f"model.encoder=timm:{name} has the tag {tag!r}, which timm {timm.__version__} does not know"
            f"{did_you_mean(tag, tags)} (known: {', '.join(tags) or 'none'})"
        ) from None
    if config is None:
        hint = did_you_mean(network, timm.list_models())
        raise ConfigError(f"model.encoder=timm:{name} is unknown to timm {timm.__version__}{hint}")
    return config


def _timm_input(timm: Any, name: str) -> ImageInput:
    config = _timm_config(timm, name)
    (_, height, width), crop = config.input_size, config.crop_pct
    stretch = config.crop_mode == "squash"
    unsupported = [
        *([f"images of {width} x {height} pixels"] if height != width else []),
        *([f"crop_mode={config.crop_mode}"] if config.crop_mode not in ("center", "squash") else []),
        *([f"crop_pct={crop:g}"] if crop > 1 or (stretch and crop < 1) else []),
        *([f"interpolation={config.interpolation}"] if config.interpolation not in get_args(Interpolation) else []),
    ]
    return ImageInput(
        size=width,
        mean=config.mean,
        std=config.std,
        interpolation=config.interpolation,
        crop=width / math.floor(width / crop),  # timm rounds the resized side down
        fit="stretch" if stretch else "crop",
        unsupported=f"{name} of timm was trained with {' and '.join(unsupported)}" if unsupported else "",
    )


def _python(name: str, weights: str | None, partial: bool = False, prefix: str | None = None) -> Backbone:
    if weights == DEFAULT:
        raise ConfigError(
            f"model.weights=default cannot be used with model.encoder=python:{name}, whose function provides the "
            "weights; leave model.weights unset, or give a file"
        )
    made = _call(name)
    backbone = made if isinstance(made, Backbone) else Backbone(made)
    if not isinstance(backbone.module, nn.Module):
        raise ConfigError(f"model.encoder=python:{name} returned {type(made).__name__}; return a torch.nn.Module")
    if weights is None:
        return backbone
    state, begin = _read_state(weights, backbone.module, partial, prefix)
    load_state(backbone.module, state, weights, partial=partial)
    return replace(backbone, prefix=begin)


def _call(name: str) -> Any:
    """Call the function MODULE:FUNCTION and return its result; the module may be in the working folder.

    That folder comes last on the path, so that no file in it hides an installed module. Ray puts it on the path of its
    workers, and a submitted job runs in a copy of it.
    """
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        made = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing a module can raise anything
        raise ConfigError(
            f"model.encoder=python:{name} cannot be imported ({type(error).__name__}: {first_line(error)}); give "
            "MODULE:FUNCTION, importable on every node: put MODULE.py into the working folder, or its folder into "
            "PYTHONPATH"
        ) from error
    try:
        return made()
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(
            f"model.encoder=python:{name} raised {type(error).__name__}: {first_line(error)}; the function must "
            "take no arguments and return the network"
        ) from error


def _no_download(encoder: str, error: OSError, file: str) -> str:
    return (
        f"the weights of model.encoder={encoder} cannot be downloaded ({first_line(error)}). Download {file} on a "
        "machine with internet access; then set model.weights to the file's path"
    )
