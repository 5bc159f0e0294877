"""Presets, YAML files and overrides to a validated configuration; errors name the key, the value and the remedy."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.models import RunConfig, Section
from pipeline.errors import ConfigError


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    files = (file.name for file in resources.files("pipeline.presets").iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load_config(source: str | Path = "digits", overrides: list[str] | None = None) -> RunConfig:
    """A preset (by name) or a YAML file (by path), with dotted overrides on top.

    Parameters
    ----------
    source : str or Path
        A name of :func:`preset_names`, or the path of a file ending in .yaml or .yml.
    overrides : list of str
        Each "section.key=value"; the value is read as YAML, so `null`, `true`, `[0.2, 1]` mean what they say.

    Raises
    ------
    ConfigError
        For an unknown preset, an unreadable file, an unknown key (with the nearest known one) or a bad value.
    """
    values = _read_yaml(source)
    for override in overrides or []:
        _set(values, override)
    return parse_config(values, str(source))


def parse_config(values: dict[str, Any], origin: str) -> RunConfig:
    """Validate plain values; ConfigError lists every fault with its dotted key."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        faults = "\n".join(f"  {fault}" for fault in dict.fromkeys(_explain(e) for e in error.errors()))
        raise ConfigError(f"configuration {origin!r} cannot be used:\n{faults}") from None


def _read_yaml(source: str | Path) -> dict[str, Any]:
    if str(source).endswith((".yaml", ".yml")):
        path = Path(source)
        if not path.is_file():
            raise ConfigError(f"there is no configuration file {str(path)!r}; give the path of one, or a preset's name")
        text = path.read_text(encoding="utf-8", errors="replace")
    elif source in preset_names():
        text = resources.files("pipeline.presets").joinpath(f"{source}.yaml").read_text()
    else:
        hint = _nearest(str(source), preset_names())
        raise ConfigError(f"unknown preset {str(source)!r}{hint}; give one of these, or a path that ends in .yaml")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration {str(source)!r} is not YAML: {error}; correct it there") from None
    if not isinstance(values, dict):
        remedy = "write sections with keys, such as data: {path: my-shards}"
        raise ConfigError(f"configuration {str(source)!r} holds {values!r}, which is no mapping; {remedy}")
    return values


def _set(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    *sections, key = dotted.strip().split(".")
    if not equals or not all((*sections, key)):
        raise ConfigError(f"override {override!r} is not of the form section.key=value, for example optim.lr=0.1")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section; end the key there")
    try:
        values[key] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value; put quotes around it") from None


def _explain(error: Any) -> str:
    """One pydantic error as a sentence with the dotted key, the value and what to do."""
    location = [str(part) for part in error["loc"]]
    dotted, value = ".".join(location), error["input"]
    if error["type"] == "extra_forbidden" and len(location) <= 2:
        return f"{dotted}: unknown key{_nearest(location[-1], _keys_beside(location))}"
    if error["type"] == "model_type":
        return f"{dotted}: is a section, not a value (got {value!r}); {_how_to_give(dotted)}"
    field = _field(location)
    if error["type"] == "missing" and field in (None, dotted):
        return f"{dotted}: a value is needed; {_how_to_give(dotted)}"
    if field is None:  # a rule over several keys, whose message has their values
        return f"{dotted}: {error['msg'].removeprefix('Value error, ')}"
    return f"{field}: {error['msg']} (got {value!r}). It is: {settings_table()[field].description}"


def _how_to_give(dotted: str) -> str:
    example = f"{dotted}.path" if dotted == "data" else f"{dotted}.KEY" if dotted in _SECTIONS else dotted
    return f"give one with --set {example}=..."


def _field(location: list[str]) -> str | None:
    """The dotted key of the setting that an error lies in, without pydantic's parts below it; None for a section."""
    known = settings_table()
    return next((dotted for n in (1, 2) if (dotted := ".".join(location[:n])) in known), None)


def settings_table() -> dict[str, FieldInfo]:
    """Every setting by its dotted key, in the order of the models."""
    table: dict[str, FieldInfo] = {}
    for name, field in RunConfig.model_fields.items():
        section = _SECTIONS.get(name)
        table |= {f"{name}.{key}": f for key, f in section.model_fields.items()} if section else {name: field}
    return table


def _keys_beside(location: list[str]) -> list[str]:
    return list((_SECTIONS[location[0]] if len(location) > 1 else RunConfig).model_fields)


_SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known)})"
