"""Search spaces: Python files that say what may vary, where to start, and what is good."""

from __future__ import annotations

import difflib
import json
import runpy
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
from pydantic.fields import FieldInfo
from ray.tune.search.sample import Categorical, Domain, Float, Integer, LogUniform, Quantized, Uniform

from pipeline.checks.settings import check_run
from pipeline.config.loading import parse_config, settings_table
from pipeline.config.models import RunConfig
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError

Point = dict[str, Any]
LABEL_FREE = [("label_free", "max")]
SCORES = ("acc", "nmi", "ari")  # known on labelled sets only
NAMES = {"SPACE": dict, "FIRST": list, "OBJECTIVES": list, "SETTINGS": dict}
# Where a trial lives and what it may take is the search's to say; and trials are compared after as many epochs.
NOT_SET = ("name", "storage", "data.path", "data.source", "checkpoint.", "resources.", "tracking.")
NOT_SEARCHED = (*NOT_SET, "optim.epochs")
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
        What trials use in place of the configuration's, to be cheaper; the best configuration goes without them.
    """

    name: str
    domains: dict[str, Domain]
    first: list[Point] = field(default_factory=list)
    objectives: list[tuple[str, str]] = field(default_factory=lambda: list(LABEL_FREE))
    settings: Point = field(default_factory=dict)

    def values(self, key: str) -> list[Any]:
        """The values of a choice, or the ends of a range; empty where the space does not hold the key."""
        domain = self.domains.get(key)
        if domain is None:
            return []
        return list(domain.categories) if isinstance(domain, Categorical) else list(bounds(domain))

    def described(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "space": {key: describe(domain) for key, domain in self.domains.items()},
            "first": self.first,
            "objectives": [list(objective) for objective in self.objectives],
            "settings": self.settings,
        }


def load_space(path: str) -> Space:
    """The space in a Python file, whose ending may be left out.

    Raises
    ------
    ConfigError
        Naming everything in the file that cannot be used.
    """
    file = Path(path).with_suffix(".py")
    if not file.is_file():
        others = [str(other) for other in sorted(file.parent.glob("*.py"))]
        raise ConfigError(f"there is no search space {str(file)!r}{_near(str(file), others)}")
    try:
        found = runpy.run_path(str(file))
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        where = f" at line {lines[-1]}" if lines else ""
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"search space {str(file)!r} cannot be loaded{where}: {said}") from None
    if faults := list(_faults(found)):
        raise ConfigError(f"search space {str(file)!r} cannot be used:\n" + "\n".join(f"  {fault}" for fault in faults))
    objectives = [(metric, mode) for metric, mode in found.get("OBJECTIVES", LABEL_FREE)]
    return Space(file.stem, found["SPACE"], found.get("FIRST", []), objectives, found.get("SETTINGS", {}))


def _faults(found: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the names that a file defines, one sentence each."""
    for name in found:
        if name.isupper() and not name.startswith("_") and name not in NAMES:
            yield f"{name}: unknown name{_near(name, list(NAMES))}; a name of your own begins with an underscore"
    wrong = [name for name, kind in NAMES.items() if not isinstance(found.get(name, kind()), kind)]
    yield from (f"{name}: is {found[name]!r}, and must be a {NAMES[name].__name__}" for name in wrong)
    if wrong:
        return
    space, objectives = found.get("SPACE", {}), found.get("OBJECTIVES", LABEL_FREE)
    if not space:
        yield "SPACE: give settings with their domains, such as {'optim.lr': tune.loguniform(0.01, 1)}"
    for key, domain in space.items():
        yield from _key_faults(key, NOT_SEARCHED)
        if not supported(domain):
            yield f"{key}: {domain!r} is no domain to search; give tune.uniform, loguniform, randint or choice"
    for key in found.get("SETTINGS", {}):
        yield from _key_faults(key, NOT_SET)
        if key in space:
            yield f"{key}: is in SPACE and in SETTINGS; take it out of one"
    for number, point in enumerate(found.get("FIRST", []), start=1):
        yield from (f"FIRST, point {number}: {fault}" for fault in _point_faults(point, space))
    if not objectives or not all(
        isinstance(item, (tuple, list)) and tuple(item[1:]) in (("max",), ("min",)) for item in objectives
    ):
        yield f"OBJECTIVES: give pairs of a metric and 'max' or 'min', not {objectives!r}"


def _key_faults(key: str, barred: tuple[str, ...]) -> Iterator[str]:
    known = settings_table()
    if key not in known and not _is_part(key, known):
        yield f"{key}: unknown setting{_near(key, list(known))}"
    elif key.startswith(barred):
        yield f"{key}: is the same for all trials; give it with --set"


def _is_part(key: str, known: dict[str, FieldInfo]) -> bool:
    """Whether a key means one number of a setting that has several, as `views.crop_scale.0` does."""
    whole, _, number = key.rpartition(".")
    kind = known[whole].annotation if whole in known else None
    return get_origin(kind) is tuple and number.isdigit() and int(number) < len(get_args(kind))


def _point_faults(point: Point, space: dict[str, Domain]) -> Iterator[str]:
    if not isinstance(point, dict):
        yield f"{point!r} is no mapping"
        return
    if odd := point.keys() ^ space.keys():
        yield f"it must have the keys of SPACE, and differs in {', '.join(sorted(odd))}"
        return
    for key, value in point.items():
        if supported(space[key]) and not inside(space[key], value):
            yield f"{key}={value!r} lies outside {describe(space[key])}"


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _sampler(domain: Domain) -> tuple[Any, float | None]:
    """How a domain is sampled, and the step of its values."""
    sampler = domain.get_sampler()
    return (sampler.sampler, sampler.q) if isinstance(sampler, Quantized) else (sampler, None)


def supported(domain: Any) -> bool:
    """Whether Optuna can search it."""
    return isinstance(domain, (Float, Integer, Categorical)) and isinstance(_sampler(domain)[0], (Uniform, LogUniform))


def bounds(domain: Domain) -> tuple[float, float]:
    """Lowest and highest value of a range. In `ray.tune` integers end before their upper bound, unless in steps."""
    excluded = isinstance(domain, Integer) and _sampler(domain)[1] is None
    return domain.lower, domain.upper - 1 if excluded else domain.upper


def inside(domain: Domain, value: Any) -> bool:
    """Whether a domain holds a value."""
    if isinstance(domain, Categorical):
        return value in domain.categories
    kind = int if isinstance(domain, Integer) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    low, high = bounds(domain)
    return low <= value <= high


def describe(domain: Domain) -> str:
    """A domain in words, for example `0.01 to 1, log`."""
    if isinstance(domain, Categorical):
        return f"one of {json.dumps(domain.categories)}"
    sampler, step = _sampler(domain)
    low, high = bounds(domain)
    log = ", log" if isinstance(sampler, LogUniform) else ""
    return f"{low:g} to {high:g}{log}{f', in steps of {step:g}' if step else ''}"


def configured(base: RunConfig, *changes: Point, origin: str = "trial") -> RunConfig:
    """A configuration with values by dotted key put in; ConfigError when that cannot be one."""
    values = base.model_dump(mode="json")
    for key, value in (item for change in changes for item in change.items()):
        *path, last = _path(key)
        reduce(getitem, path, values)[last] = value
    return parse_config(values, origin)


def _path(key: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in key.split(".")]


def first_points(base: RunConfig, space: Space) -> list[Point]:
    """The configuration's own values, where the space holds them, and then the space's first points."""
    values = base.model_dump(mode="json")
    own = {key: reduce(getitem, _path(key), values) for key in space.domains}
    held = all(inside(domain, own[key]) for key, domain in space.domains.items())
    return [*([own] if held else []), *(point for point in space.first if not held or point != own)]


def check_points(base: RunConfig, space: Space, manifest: Manifest) -> None:
    """ConfigError when a point of the space cannot be run on a data set: its first ones, and many drawn at random."""
    random = np.random.default_rng(0)
    drawn = [{key: domain.sample(random_state=random) for key, domain in space.domains.items()} for _ in range(DRAWS)]
    for point in [*first_points(base, space), *drawn]:
        try:
            check_run(configured(base, point, origin=space.name), manifest)
        except ConfigError as error:
            raise ConfigError(f"space {space.name!r} holds {point}, which cannot be run: {error}") from None
