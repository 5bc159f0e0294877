"""From presets, YAML files and overrides to a validated configuration; errors name key, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.models import RunConfig, Section
from pipeline.config.removed import REMOVED
from pipeline.errors import ConfigError, DataError, did_you_mean
from pipeline.storage import refuse_secrets

SHOWN = 80  # characters of a bad value that a message repeats


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
        Each "section.key=value". If the setting is a text, the value is the text as typed, and `null` is none;
        otherwise it is YAML: `null`, `true`, `[0.2, 1]`, `{min: 1, max: 4}`.

    Raises
    ------
    ConfigError
        For an unknown preset, an unreadable file, an unknown key (with the nearest known one) or a bad value.
    """
    values = _read_source(source)
    for override in overrides or []:
        _apply_override(values, override)
    return parse_config(values, str(source))


def override(config: RunConfig, overrides: list[str], origin: str) -> RunConfig:
    """The configuration with overrides as `load_config` takes them; errors name `origin` as their source."""
    values = _values(config)
    for text in overrides:
        _apply_override(values, text)
    return parse_config(values, origin)


def parse_config(values: dict[str, Any], origin: str) -> RunConfig:
    """Validate plain values; ConfigError lists every fault with its dotted key."""
    _refuse_secrets(values)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        faults = "\n".join(f"  {fault}" for fault in _explain(error))
        raise ConfigError(f"configuration {origin!r} cannot be used:\n{faults}") from None


def _refuse_secrets(value: Any, *keys: str) -> None:
    """ConfigError for a URI with a secret, before another message repeats it; MLflow's URI may have a password."""
    if isinstance(value, dict):
        for name, below in value.items():
            _refuse_secrets(below, *keys, str(name))
    elif isinstance(value, str) and keys != ("tracking", "uri"):
        try:
            refuse_secrets(value)
        except DataError as error:
            raise ConfigError(f"{'.'.join(keys)}: {error}") from None


def parse_saved(values: dict[str, Any], origin: str) -> RunConfig:
    """The configuration that a run has saved, without settings of earlier versions that are gone."""
    kept = {
        section: {key: value for key, value in below.items() if f"{section}.{key}" not in REMOVED}
        for section, below in values.items()
        if isinstance(below, dict)
    }
    return parse_config(values | kept, origin)


def with_settings(config: RunConfig, changes: Mapping[str, Any], origin: str) -> RunConfig:
    """The configuration with values put in by dotted key, as in ``{"optim.lr": 0.1, "views.crop_scale.0": 0.3}``.

    Raises
    ------
    ConfigError
        When the result is not a valid configuration; the message names `origin` as the source of the values.
    """
    values = _values(config)
    for key, value in changes.items():
        set_setting(values, key, value)
    return parse_config(values, origin)


def _values(config: RunConfig) -> dict[str, Any]:
    """Plain values with the password, which is left out of values that are kept or shown."""
    values = config.model_dump(mode="json")
    values["tracking"]["uri"] = config.tracking.uri
    return values


def get_setting(values: dict[str, Any], key: str) -> Any:
    """The value at a dotted key of nested plain values; a number in the key picks from a list.

    Raises
    ------
    ConfigError
        When nothing is there.
    """
    value: Any = values
    for part in key.split("."):
        value = _item(value, part, key)
    return value


def set_setting(values: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at a dotted key of nested plain values; sections that are missing are made.

    Raises
    ------
    ConfigError
        When a part of the key is a value and not a section, or a list has no such item.
    """
    *sections, last = key.split(".")
    place: Any = values
    for section in sections:
        place = place.setdefault(section, {}) if isinstance(place, dict) else _item(place, section, key)
        if not isinstance(place, (dict, list)):
            raise ConfigError(f"{key}: {section!r} is a value, not a section; end the key at {section!r}")
    if isinstance(place, list):
        _item(place, last, key)
        place[int(last)] = value
    else:
        place[last] = value


def _item(place: Any, part: str, key: str) -> Any:
    """One step down a dotted key, into a section or a list."""
    try:
        return place[int(part) if isinstance(place, list) else part]
    except (KeyError, IndexError, TypeError, ValueError):
        raise ConfigError(f"{key}: there is no {part!r} in {_shown(place)}; correct the key") from None


def settings_table() -> dict[str, FieldInfo]:
    """Every setting by its dotted key, in the order of the models."""
    table: dict[str, FieldInfo] = {}
    for name, field in RunConfig.model_fields.items():
        section = _SECTIONS.get(name)
        table |= {f"{name}.{key}": f for key, f in section.model_fields.items()} if section else {name: field}
    return table


class _Loader(yaml.SafeLoader):
    """YAML whose plain scalars, except `null`, stay text as typed: the setting's type decides how they are read.

    YAML 1.1 would read 007 as 7, 12:30 as 750, 1_0 as 10, 2024-05-01 as a date and `on` as a truth value.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML copies it at the first addition

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML does, but a key that is given twice is an error."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"{twice!r} is given twice in one section")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(null)?$"), ["n", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def _read_source(source: str | Path) -> dict[str, Any]:
    """The values of a preset or file, not validated yet."""
    if str(source).endswith((".yaml", ".yml")):
        text = _read_file(Path(source))
    elif source in preset_names():
        text = resources.files("pipeline.presets").joinpath(f"{source}.yaml").read_text()
    else:
        hint = _nearest(str(source), preset_names())
        raise ConfigError(f"unknown preset {str(source)!r}{hint}; give one of these, or a path that ends in .yaml")
    try:
        values = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration {str(source)!r} is not YAML: {error}; correct it there") from None
    if not isinstance(values, dict):
        remedy = "write sections with keys, such as data: {path: my-shards}"
        raise ConfigError(f"configuration {str(source)!r} is {_shown(values)}, not a mapping; {remedy}")
    return values


def _read_file(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"there is no configuration file {str(path)!r}; give the path of one, or a preset's name")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"configuration file {str(path)!r} cannot be read ({error}); give a UTF-8 text file"
        ) from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise ConfigError(f"override {override!r} is not of the form section.key=value, for example optim.lr=0.1")
    try:
        set_setting(values, key, _typed_text(text) if _is_text(key) else _parse_yaml(text))
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value; put quotes around it") from None
    except ConfigError as error:
        raise ConfigError(f"override {override!r}: {error}") from None


def _is_text(key: str) -> bool:
    """Whether a setting takes any text, so that its value is not parsed as YAML."""
    field = settings_table().get(key)
    return field is not None and str in (field.annotation, *_plain(field.annotation))


def _plain(annotation: Any) -> list[Any]:
    """The members of a union without their validators."""
    return [get_args(member)[0] if hasattr(member, "__metadata__") else member for member in get_args(annotation)]


def _typed_text(text: str) -> str | None:
    """A text as typed; None for `null` and for an empty text. Quotes that the shell left around it are removed."""
    if text in ("null", ""):
        return None
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _explain(error: ValidationError) -> list[str]:
    """Each fault of a configuration as a sentence; objections by several types of one setting are one fault."""
    faults: dict[str, list[Any]] = {}
    for fault in error.errors():
        location = [str(part) for part in fault["loc"]]
        faults.setdefault(_field(location) or ".".join(location), []).append(fault)
    return [_explain_one(key, found) for key, found in faults.items()]


def _explain_one(key: str, faults: list[Any]) -> str:
    """The faults at one key as a sentence with the key, the value and what to do."""
    first, location = faults[0], [str(part) for part in faults[0]["loc"]]
    if key in REMOVED:
        return f"{key}: is no longer a setting, because {REMOVED[key]}; leave it out"
    if first["type"] == "extra_forbidden" and len(location) <= 2:
        return f"{key}: unknown key{_nearest(location[-1], _keys_beside(location))}"
    if first["type"] == "model_type" and key in _SECTIONS:
        return f"{key}: is a section, not a value (got {_shown(first['input'])}); {_how_to_give(key)}"
    if first["type"] == "missing" and ".".join(location) == key:
        return f"{key}: a value is required; {_how_to_give(key)}"
    message = ", or ".join(dict.fromkeys(fault["msg"].removeprefix("Value error, ") for fault in faults))
    if _field(location) is None:  # a rule over several keys, whose message has their values
        return f"{key}: {message}"
    return f"{key}: {message} (got {_shown(first['input'])}). Meaning: {settings_table()[key].description}"


def _how_to_give(key: str) -> str:
    example = f"{key}.path" if key == "data" else f"{key}.KEY" if key in _SECTIONS else key
    return f"give one with --set {example}=..."


def _shown(value: Any) -> str:
    """A value as it was given, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _field(location: list[str]) -> str | None:
    """The dotted key of the setting that an error lies in, without pydantic's parts below it; None for a section."""
    known = settings_table()
    return next((dotted for n in (1, 2) if (dotted := ".".join(location[:n])) in known), None)


def _keys_beside(location: list[str]) -> list[str]:
    return list((_SECTIONS[location[0]] if len(location) > 1 else RunConfig).model_fields)


_SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def _nearest(word: str, known: list[str]) -> str:
    return f"{did_you_mean(word, known)} (known: {', '.join(known)})"
