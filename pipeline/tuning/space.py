"""Search spaces: Python files that say what may vary, where to start, and what is good."""

from __future__ import annotations

import json
import runpy
import sys
import traceback
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
from optuna.distributions import BaseDistribution
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Categorical, Domain, Float, Integer, LogUniform, Quantized, Uniform

from pipeline.checks.settings import check_settings
from pipeline.config.identity import environment_settings
from pipeline.config.loading import get_setting, settings_table, with_settings
from pipeline.config.models import RunConfig
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError, did_you_mean, first_line

SearchPoint = dict[str, Any]  # dotted key of a setting -> value
Objective = tuple[str, str]  # metric, and "max" or "min"
LABEL_FREE: list[Objective] = [("label_free", "max")]
SCORES = ("acc", "nmi", "ari")  # known on labelled sets only
PLAIN = (bool, int, float, str)
NAMES = {"SPACE": dict, "FIRST": list, "OBJECTIVES": list, "SETTINGS": dict}
EPOCHS = "optim.epochs"  # not searched: trials are compared after equal numbers of epochs
DRAWS = 200  # points of a space that are tried as configurations before anything starts


@dataclass(frozen=True)
class Space:
    """What a search may vary.

    Attributes
    ----------
    name : str
        Of its file.
    domains : dict
        Dotted key of a setting -> domain of `ray.tune`. `views.crop_scale.0` is the first of its two numbers.
    first : list of dict
        Points that are tried before all others, each with a value for every key.
    objectives : list of (metric, "max" or "min")
    settings : dict
        Used by trials in place of the configuration's, to be cheaper; the best configuration does not have them.
    file : str
        Path of its file, for messages.
    """

    name: str
    domains: dict[str, Domain]
    first: list[SearchPoint] = field(default_factory=list)
    objectives: list[Objective] = field(default_factory=lambda: list(LABEL_FREE))
    settings: SearchPoint = field(default_factory=dict)
    file: str = "the space"

    @property
    def metrics(self) -> list[str]:
        """The metrics of the objectives."""
        return [metric for metric, _ in self.objectives]

    def values(self, key: str) -> list[Any]:
        """The values of a choice, or the ends of a range; empty if the space does not have the key."""
        domain = self.domains.get(key)
        if domain is None:
            return []
        return list(domain.categories) if isinstance(domain, Categorical) else list(bounds(domain))

    def ranges(self) -> dict[str, str]:
        """Each key's domain in words."""
        return {key: describe_domain(domain) for key, domain in self.domains.items()}

    def distributions(self) -> dict[str, BaseDistribution]:
        """Each key's domain as Optuna has it."""
        return dict(OptunaSearch.convert_search_space(dict(self.domains)))

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "space": self.ranges(),
            "first": self.first,
            "objectives": [list(objective) for objective in self.objectives],
            "settings": self.settings,
        }


def load_space(path: str) -> Space:
    """The space in a Python file, whose suffix may be left out.

    Raises
    ------
    ConfigError
        Naming everything in the file that cannot be used.
    """
    file = Path(path).with_suffix(".py")
    if not file.is_file():
        others = [str(other) for other in sorted(file.parent.glob("*.py"))]
        raise ConfigError(f"there is no search space {str(file)!r}{_hint(str(file), others)}; give the path of one")
    names = {name: _plain(value) if name in NAMES else value for name, value in _run_file(file).items()}
    if faults := list(_faults(names)):
        raise ConfigError(f"search space {str(file)!r} cannot be used:\n" + "\n".join(f"  {fault}" for fault in faults))
    objectives = [(metric, mode) for metric, mode in names.get("OBJECTIVES", LABEL_FREE)]
    return Space(file.stem, names["SPACE"], names.get("FIRST", []), objectives, names.get("SETTINGS", {}), str(file))


def _run_file(file: Path) -> dict[str, Any]:
    """The names that a Python file defines; it may import files beside it. ConfigError says where it failed."""
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        return runpy.run_path(str(file))
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        where = f" at line {lines[-1]}" if lines else ""
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"search space {str(file)!r} cannot be loaded{where}: {reason}; correct it there") from None
    finally:
        sys.path.remove(str(file.parent.resolve()))


def _plain(value: Any) -> Any:
    """A value with Python's own numbers and texts instead of numpy's, and lists instead of tuples.

    The results of a search are kept as JSON and YAML, which hold only such values.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key) if isinstance(key, str) else key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return tune.choice(_plain(value.categories)) if isinstance(value, Categorical) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list) else value is None or type(value) in PLAIN


def _faults(names: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the names that a file defines, one sentence each."""
    for name in names:
        if name.isupper() and not name.startswith("_") and name not in NAMES:
            yield f"{name}: unknown name{_hint(name, NAMES)}; a name of your own begins with an underscore"
    wrong = [name for name, kind in NAMES.items() if not isinstance(names.get(name, kind()), kind)]
    yield from (f"{name}: is {names[name]!r}, but must be a {NAMES[name].__name__}" for name in wrong)
    if wrong:
        return
    domains = names.get("SPACE", {})
    if not domains:
        yield "SPACE: give settings with their domains, such as {'optim.lr': tune.loguniform(0.01, 1)}"
    for key, domain in domains.items():
        yield from _key_faults(key, [*environment_settings(), EPOCHS])
        yield from _domain_faults(key, domain)
    for key, value in names.get("SETTINGS", {}).items():
        yield from _key_faults(key, environment_settings())
        yield from _value_faults(key, [value])
        if key in domains:
            yield f"{key}: is in SPACE and in SETTINGS; remove it from one of them"
    for number, point in enumerate(names.get("FIRST", []), start=1):
        yield from (f"FIRST, point {number}: {fault}" for fault in _point_faults(point, domains))
    yield from _objective_faults(names.get("OBJECTIVES", LABEL_FREE))


def _key_faults(key: Any, barred: Collection[str]) -> Iterator[str]:
    setting = _setting_of(key)
    if setting is None:
        yield f"{key}: unknown setting{_hint(str(key), settings_table())}"
    elif setting in barred:
        yield f"{key}: must be the same for all trials; give it with --set"


def _setting_of(key: Any) -> str | None:
    """The setting that a key names, also by one of its numbers (`views.crop_scale.0`); None when there is none."""
    known = settings_table()
    if key in known:
        return str(key)
    setting, _, number = str(key).rpartition(".")
    kind = known[setting].annotation if setting in known else None
    is_part = get_origin(kind) is tuple and number.isdigit() and int(number) < len(get_args(kind))
    return setting if is_part else None


def _domain_faults(key: str, domain: Any) -> Iterator[str]:
    if not is_supported(domain):
        yield f"{key}: {domain!r} is not a domain to search; give tune.uniform, loguniform, randint or choice"
    elif isinstance(domain, Categorical):
        if not domain.categories:
            yield f"{key}: the choice is empty; give it values"
        yield from _value_faults(key, domain.categories)
    elif not bounds(domain)[0] <= bounds(domain)[1]:
        yield f"{key}: the range {describe_domain(domain)} is empty; give an upper end above the lower"


def _value_faults(key: str, values: list[Any]) -> Iterator[str]:
    for value in values:
        if not _is_plain(value):
            yield f"{key}: {value!r} is a {type(value).__name__}; give numbers, texts, None, or lists of them"


def _point_faults(point: Any, domains: dict[str, Domain]) -> Iterator[str]:
    if not isinstance(point, dict):
        yield f"{point!r} is not a mapping; give a value for each key of SPACE"
        return
    if odd := point.keys() ^ domains.keys():
        yield f"it must have the keys of SPACE, but differs in {', '.join(sorted(map(str, odd)))}"
        return
    for key, value in point.items():
        if is_supported(domains[key]) and not contains(domains[key], value):
            yield f"{key}={value!r} is outside {describe_domain(domains[key])}"


def _objective_faults(objectives: list[Any]) -> Iterator[str]:
    def is_objective(item: Any) -> bool:
        return (
            isinstance(item, (tuple, list))
            and len(item) == 2
            and isinstance(item[0], str)
            and item[1] in ("max", "min")
        )

    if not objectives or not all(map(is_objective, objectives)):
        yield f"OBJECTIVES: give pairs of a metric and 'max' or 'min', not {objectives!r}"
    elif len({metric for metric, _ in objectives}) < len(objectives):
        yield f"OBJECTIVES: {objectives!r} has a metric twice; give each once"


def _hint(word: str, known: Collection[str]) -> str:
    return did_you_mean(word, known, cutoff=0.5)


def _sampler(domain: Domain) -> tuple[Any, float | None]:
    """How a domain is sampled, and the step of its values."""
    sampler = domain.get_sampler()
    return (sampler.sampler, sampler.q) if isinstance(sampler, Quantized) else (sampler, None)


def is_supported(domain: Any) -> bool:
    """Whether Optuna can search a domain."""
    return isinstance(domain, (Float, Integer, Categorical)) and isinstance(_sampler(domain)[0], (Uniform, LogUniform))


def bounds(domain: Domain) -> tuple[float, float]:
    """Lowest and highest value of a range. In `ray.tune` an integer's upper bound is excluded, unless it has steps."""
    excluded = isinstance(domain, Integer) and _sampler(domain)[1] is None
    return domain.lower, domain.upper - 1 if excluded else domain.upper


def contains(domain: Domain, value: Any) -> bool:
    """Whether a domain holds a value."""
    if isinstance(domain, Categorical):
        return value in domain.categories
    kind = int if isinstance(domain, Integer) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    low, high = bounds(domain)
    return low <= value <= high


def describe_domain(domain: Domain) -> str:
    """A domain in words, for example `0.01 to 1, log`."""
    if isinstance(domain, Categorical):
        return f"one of {json.dumps(domain.categories, default=str)}"
    sampler, step = _sampler(domain)
    low, high = bounds(domain)
    log = ", log" if isinstance(sampler, LogUniform) else ""
    return f"{low:g} to {high:g}{log}{f', in steps of {step:g}' if step else ''}"


def format_point(point: SearchPoint) -> str:
    """A point in one line, for example `optim.lr=0.1235  seed=3`."""
    return "  ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in point.items()
    )


def first_points(base: RunConfig, space: Space) -> list[SearchPoint]:
    """The configuration's own values if they lie in the space, then the space's first points."""
    values = base.model_dump(mode="json")
    own = {key: get_setting(values, key) for key in space.domains}
    held = all(contains(domain, own[key]) for key, domain in space.domains.items())
    return [*([own] if held else []), *(point for point in space.first if not held or point != own)]


def check_points(base: RunConfig, space: Space, manifest: Manifest) -> None:
    """ConfigError if a point cannot be run on a data set; tries the first points, and many drawn at random."""
    random = np.random.default_rng(0)
    drawn = [{key: domain.sample(random_state=random) for key, domain in space.domains.items()} for _ in range(DRAWS)]
    for point in [*first_points(base, space), *drawn]:
        try:
            check_settings(with_settings(base, point, space.name), manifest)
        except ConfigError as error:
            raise ConfigError(f"space {space.name!r} holds {point}, which cannot be run: {error}") from None
