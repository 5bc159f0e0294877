"""The run configuration: typed, validated, and the same object from the command line to the worker.

A configuration is built in three layers, later ones winning: a preset (``pipeline/presets/*.yaml``) or a
YAML file, then dotted overrides (``optim.lr=0.1``). Unknown keys are errors that name the nearest known key.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Probability = float


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, the bad value and the remedy."""


class Section(BaseModel):
    """Base of every section: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """Where the images are and how they reach the workers."""

    path: str = Field(description="folder of shards with a manifest.json, as `digpro ingest` writes it")
    source: str | None = Field(
        None, description="what to ingest into `path` when it holds no manifest yet (see `digpro ingest --help`)"
    )
    image_size: int = Field(32, ge=4, description="images are decoded to image_size x image_size pixels")
    mode: Literal["auto", "resident", "streaming"] = Field(
        "auto", description="resident: every worker holds the decoded set; streaming: Ray Data feeds each epoch"
    )
    resident_limit_gb: float = Field(4.0, gt=0, description="largest decoded set per worker that `auto` keeps resident")
    shuffle_buffer: int = Field(8192, ge=0, description="streaming: images in each worker's local shuffle buffer")


class ViewsConfig(Section):
    """Random augmentation of one view; the defaults are the reference's SimCLR set (ALGORITHM section 2)."""

    size: int = Field(32, ge=4, description="side of the square view in pixels")
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="area of the crop over the image's area")
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="width over height of the crop")
    rotation: float = Field(0.0, ge=0, le=180, description="largest rotation in degrees, drawn in +-rotation")
    horizontal_flip: Probability = Field(0.5, ge=0, le=1)
    vertical_flip: Probability = Field(0.0, ge=0, le=1)
    jitter: Probability = Field(0.8, ge=0, le=1, description="probability of the colour jitter")
    brightness: float = Field(0.4, ge=0, le=1)
    contrast: float = Field(0.4, ge=0, le=1)
    saturation: float = Field(0.4, ge=0, le=1)
    hue: float = Field(0.1, ge=0, le=0.5, description="largest hue shift, as a part of the colour circle")
    grayscale: Probability = Field(0.2, ge=0, le=1)
    blur: Probability = Field(0.0, ge=0, le=1)
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="pixels of the view")

    @model_validator(mode="after")
    def _ranges(self) -> ViewsConfig:
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {low, high}; give (low, high) with 0 < low <= high")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale is {self.crop_scale}; a crop cannot exceed the image, keep it <= 1")
        return self


class ModelConfig(Section):
    """The two networks (ALGORITHM section 1)."""

    encoder: Literal["tiny", "resnet18", "resnet34", "resnet50"] = "resnet18"
    small_stem: bool = Field(True, description="3x3 stride-1 stem without max-pool, for images up to about 64 pixels")
    projector_hidden: int = Field(4096, ge=1)
    feature_size: int = Field(256, ge=2)
    predictor_hidden: int = Field(4096, ge=1)


class MethodConfig(Section):
    """DigPro's own settings. The four `reference_*` switches restore what the reference code does."""

    num_clusters: int | None = Field(None, ge=2, description="K; null takes the number of classes of the manifest")
    instance_weight: float = Field(1.0, ge=0)
    prototype_weight: float = Field(0.1, ge=0, description="off during warm-up")
    group_weight: float = Field(0.3, ge=0)
    prototype_temperature: float = Field(0.5, gt=0)
    group_temperature: float = Field(0.1, gt=0)
    group_momentum: float = Field(0.99, ge=0, lt=1)
    reset_every: int | None = Field(None, ge=1, description="steps between group resets; null means K steps")
    bank_size: int = Field(2560, ge=1, description="rows of the feature bank behind the resets")
    latent_noise: float = Field(0.001, ge=0, description="standard deviation, off during warm-up")
    target_momentum: float = Field(0.996, ge=0, le=1)
    increase_momentum: bool = Field(False, description="cosine from target_momentum to 1 over the run")
    reference_double_momentum: bool = Field(False, description="move the target a first time, by 0.99, each step")
    reference_raw_groups: bool = Field(False, description="mix raw instead of unit features into the groups")
    reference_empty_logit: bool = Field(False, description="mask empty prototypes with -10 instead of -inf")
    reference_long_cosine: bool = Field(False, description="cosine over all epochs, so that the lr never reaches its end")


class OptimConfig(Section):
    """Optimiser and schedules (ALGORITHM sections 5 and 6)."""

    epochs: int = Field(1000, ge=1)
    warmup_epochs: int = Field(50, ge=0)
    batch_size: int = Field(256, ge=2, description="images per step over all workers")
    lr: float = Field(0.05, gt=0, description="at a batch of 256; scaled in proportion to the batch")
    final_lr_fraction: float = Field(0.0, ge=0, le=1)
    predictor_lr_factor: float = Field(10.0, gt=0)
    fixed_predictor_lr: bool = False
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    decay_bias_and_norm: bool = Field(True, description="the reference decays every tensor")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="autocast of the networks; auto is bfloat16 on GPUs that have it, else float32"
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> OptimConfig:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, more than epochs ({self.epochs}); lower warmup_epochs"
            )
        return self


class EStepConfig(Section):
    """Pseudo-labels by spherical k-means on the target's features (ALGORITHM section 4)."""

    every: int = Field(1, ge=1, description="epochs between E-steps")
    batch_size: int = Field(512, ge=1, description="images per worker and forward pass")
    restarts: int = Field(10, ge=1)
    max_iter: int = Field(300, ge=1)
    tol: float = Field(1e-4, ge=0)
    warm_start: bool = Field(False, description="add the last centres as one more start")


class CheckpointConfig(Section):
    """When the state is saved, and how many saves are kept."""

    every_epochs: int = Field(1, ge=1)
    every_steps: int | None = Field(None, ge=1, description="also inside an epoch, for epochs of hours")
    keep: int = Field(2, ge=2, description="2 or more: a damaged checkpoint falls back to the one before it")


class ResourcesConfig(Section):
    """What the run asks of the Ray cluster."""

    workers: int = Field(2, ge=1)
    gpus: bool | Literal["auto"] = Field("auto", description="one GPU per worker; auto takes them when there are enough")
    cpus_per_worker: float | None = Field(None, gt=0, description="null leaves at least one CPU to Ray Data")
    max_failures: int = Field(3, ge=0, description="worker-group restarts before the run gives up")


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = Field(None, description="any MLflow URI; null is an SQLite file in the storage folder")
    experiment: str = "digpro"
    system_metrics: bool = True


class RunConfig(Section):
    """All of one training run."""

    name: str | None = Field(None, description="identity of the run; null derives it from preset and settings")
    storage: str = Field("runs", description="folder or pyarrow filesystem URI under which runs are kept")
    seed: int = Field(0, ge=0)
    data: DataConfig
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    optim: OptimConfig = OptimConfig()
    estep: EStepConfig = EStepConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in resources.files("pipeline.presets").iterdir() if p.name.endswith(".yaml"))


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
        faults = "\n".join(f"  {_explain(e)}" for e in error.errors())
        raise ConfigError(f"configuration {origin!r} cannot be used:\n{faults}") from None


def _read_yaml(source: str | Path) -> dict[str, Any]:
    if str(source).endswith((".yaml", ".yml")):
        path = Path(source)
        if not path.is_file():
            raise ConfigError(f"there is no configuration file {str(path)!r}")
        text = path.read_text()
    elif source in preset_names():
        text = resources.files("pipeline.presets").joinpath(f"{source}.yaml").read_text()
    else:
        raise ConfigError(f"unknown preset {str(source)!r}{_nearest(str(source), preset_names())}, or give a .yaml file")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration {str(source)!r} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"configuration {str(source)!r} holds {values!r}; it must be a mapping of sections")
    return values


def _set(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"override {override!r} has no '='; write section.key=value, for example optim.lr=0.1")
    *sections, key = dotted.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
    values[key] = yaml.safe_load(text)


def _explain(error: Any) -> str:
    """One pydantic error as a sentence with the dotted key, the value and what to do."""
    location = [str(part) for part in error["loc"]]
    dotted = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"{dotted}: unknown key{_nearest(location[-1], _keys_beside(location))}"
    if error["type"] == "missing":
        return f"{dotted}: a value is needed; give one with --set {dotted}=..."
    return f"{dotted or 'settings'}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r})"


def _keys_beside(location: list[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for section in location[:-1]:
        annotation = model.model_fields[section].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known)})"


def fingerprint(config: RunConfig) -> str:
    """Eight characters that change with every setting that changes the result, and with no other.

    Where a run is stored or tracked and on how many workers it runs are not part of it.
    """
    relevant = config.model_dump(mode="json", exclude={"name", "storage", "resources", "tracking", "checkpoint"})
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:8]
