"""The run configuration: typed, validated, and the same object from the command line to the worker.

A configuration is built in three layers, later ones winning: a preset (``pipeline/presets/*.yaml``) or a
YAML file, then dotted overrides (``optim.lr=0.1``). Unknown keys are errors that name the nearest known key.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_serializer, model_validator

from pipeline.backbones.names import DEFAULT, LIBRARIES, OWN, is_library_name
from pipeline.errors import did_you_mean
from pipeline.storage import redacted

Probability = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[float, Field(ge=0, le=1)]
Channels = tuple[Level, Level, Level]

# Marks, given at the field. A setting without one decides the result of a run and is part of its identity.
CIRCUMSTANCE = "circumstance"  # decides how a run is carried out, but not its result
ENVIRONMENT = "environment"  # also: where a run lives and what it takes, the same for all trials of a search
LATER = "later"  # added after runs had been named: part of a name only if it is not the default

T = TypeVar("T")
Circumstance = Annotated[T, CIRCUMSTANCE]
Environment = Annotated[T, CIRCUMSTANCE, ENVIRONMENT]
Later = Annotated[T, LATER]

NAME_BYTES = 200  # file systems take 255 for the name of a folder; a search appends to it
LARGEST_SEED = 2**32 - 1  # of NumPy's RandomState, which scikit-learn and Optuna use; PyTorch takes more


def folder_name(name: str) -> str:
    """The name of a run in Unicode's composed form, so that it is one folder whichever way its letters are typed.

    Letters and digits of every alphabet are allowed; characters that mean something in a path or to a shell are not.
    """
    name = unicodedata.normalize("NFC", name)
    if bad := [c for c in name if c not in "._-" and unicodedata.category(c)[0] not in "LMN"]:
        raise ValueError(f"{bad[0]!r} cannot be part of a name; use letters, digits, '.', '_' and '-'")
    if not name or name[0] in ".-":
        raise ValueError("a name begins with a letter, a digit or '_'")
    if (size := len(name.encode())) > NAME_BYTES:
        raise ValueError(f"the name has {size} bytes, and the folder of a run can have {NAME_BYTES}; shorten it")
    return name


def encoder_name(name: str) -> str:
    """The name of an encoder of ours, or of a library."""
    if name not in OWN and not is_library_name(name):
        prefixes = ", ".join(f"{library}:NAME" for library in LIBRARIES)
        raise ValueError(f"unknown encoder (known: {', '.join(OWN)}, {prefixes}){did_you_mean(name, OWN)}")
    return name


class Section(BaseModel):
    """Base of every section: immutable, unknown keys are errors, and so are infinities and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where the images are and how they reach the workers."""

    path: Environment[str] = Field(
        min_length=1, description="folder of shards with a manifest.json, as `digpro ingest` writes it; or its URI"
    )
    source: Environment[str | None] = Field(
        None, description="what to ingest into `path` when it holds no manifest yet (see `digpro ingest --help`)"
    )
    classes: Environment[str | None] = Field(
        None,
        description="classes of `source` to take: a list that comes with the package, such as imagenet-10, or a file "
        "(docs/data.md); null: all",
    )
    features: Environment[str | None] = Field(
        None,
        description="folder under which the features of frozen backbones are cached; null: `features` in `storage`",
    )
    image_size: int | None = Field(
        None, ge=4, description="images are decoded to image_size x image_size pixels; null: 32, or the backbone's own"
    )
    fit: Later[Literal["stretch", "crop"] | None] = Field(
        None,
        description="how an image becomes a square: stretch it, or crop its middle; null: stretch, or crop for a "
        "pretrained backbone",
    )
    interpolation: Later[Literal["bilinear", "bicubic"] | None] = Field(
        None, description="of the resizing; null: bilinear, or the backbone's own"
    )
    mean: Later[Channels | None] = Field(
        None, description="of the RGB channels in [0, 1]; null: the data set's, or the backbone's own"
    )
    std: Later[Channels | None] = Field(None, description="as `mean`; 0 only centres a channel")
    mode: Circumstance[Literal["auto", "resident", "streaming"]] = Field(
        "auto",
        description="resident: the workers keep the decoded images; streaming: Ray Data reads them anew each epoch; "
        "auto chooses by resident_limit_gb. The result is the same",
    )
    resident_limit_gb: Circumstance[float] = Field(
        4.0, gt=0, description="most decoded images, in GiB per worker, that `auto` keeps resident"
    )
    shuffle_window: Later[int | None] = Field(
        None,
        ge=1,
        description="images that are shuffled together, over all workers, which hold about twice as many when they "
        "stream; null: 65,536, or what takes 2 GiB if that is less",
    )

    @property
    def decoding(self) -> dict[str, Any]:
        """Arguments of `decode_table`, for a configuration whose open settings have been filled in."""
        return {"size": self.image_size, "fit": self.fit, "interpolation": self.interpolation}


class ViewsConfig(Section):
    """Random augmentation of one view; the defaults are the reference code's, which are SimCLR's without blur."""

    size: int | None = Field(
        None, ge=4, description="side of the square view in pixels; null: 32, or the backbone's own"
    )
    cached: Later[int] = Field(8, ge=2, description="augmented views of each image in the cache of a frozen backbone")
    cache_seed: Later[int] = Field(
        0, ge=0, le=LARGEST_SEED, description="of the views in the cache; apart from `seed`, so that runs share a cache"
    )
    neighbours: Later[int] = Field(
        0,
        ge=0,
        description="k: the second view is of one of the image's k nearest neighbours, by the un-augmented features of "
        "a frozen backbone; 0: of the image itself",
    )
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="area of the crop over the image's area")
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="width over height of the crop")
    rotation: float = Field(0.0, ge=0, le=180, description="largest rotation in degrees, drawn in +-rotation")
    horizontal_flip: Probability = Field(0.5, description="probability; 0 where left and right matter (digits)")
    vertical_flip: Probability = Field(0.0, description="probability; 0.5 suits images from above")
    jitter: Probability = Field(0.8, description="probability of the colour jitter")
    brightness: Probability = Field(0.4, description="jitter: factor drawn in 1 +- brightness")
    contrast: Probability = Field(0.4, description="jitter: factor drawn in 1 +- contrast")
    saturation: Probability = Field(0.4, description="jitter: factor drawn in 1 +- saturation")
    hue: float = Field(0.1, ge=0, le=0.5, description="jitter: largest hue shift, as a fraction of the colour circle")
    grayscale: Probability = Field(0.2, description="probability")
    blur: Probability = Field(0.0, description="probability of gaussian blur; the reference has it off")
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="range of the blur, in pixels of the view")

    @model_validator(mode="after")
    def _ranges(self) -> ViewsConfig:
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {[low, high]}; give [low, high] with 0 < low <= high")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale is {list(self.crop_scale)}; a crop cannot exceed the image, keep it <= 1")
        return self


class ModelConfig(Section):
    """The networks; sizes are the reference code's."""

    encoder: Annotated[str, AfterValidator(encoder_name)] = Field(
        "resnet18",
        description="tiny: four convolutions, for images of about 16 pixels; resnet18, resnet34, resnet50: untrained; "
        "torchvision:NAME, timm:NAME, python:MODULE:FUNCTION: docs/backbones.md",
    )
    small_stem: bool = Field(
        True, description="resnet18, 34, 50: 3x3 stride-1 stem without max-pool, for images up to about 64 pixels"
    )
    weights: Later[str | None] = Field(
        None, description="of a library's network: null untrained, default the library's own, or a state dict's path"
    )
    weights_prefix: Later[str | None] = Field(
        None, description="what the network's names begin with in the state dict, as teacher; null: found"
    )
    partial_weights: Later[bool] = Field(False, description="accept a state dict with missing or unexpected names")
    freeze: Later[bool] = Field(
        False, description="leave the encoder as it is: its features are cached once, and the heads are trained on them"
    )
    start_from: Later[str | None] = Field(
        None,
        description="folder of a finished run, with whose networks, groups and bank this one begins; --from",
    )
    projector_hidden: int = Field(4096, ge=1, description="width of the projector's hidden layer")
    feature_size: int = Field(256, ge=2, description="D: length of the features that are clustered")
    predictor_hidden: int = Field(4096, ge=1, description="width of the predictor's hidden layer")


class MethodConfig(Section):
    """DigPro's own settings (arXiv 2401.13581)."""

    num_clusters: int | None = Field(None, ge=2, description="K; null takes the number of classes of the manifest")
    num_groups: int | None = Field(
        None, ge=1, description="momentum groups; null means K, as in the paper, and more are finer than clusters"
    )
    instance_weight: float = Field(1.0, ge=0, description="of the instance loss")
    prototype_weight: float = Field(0.1, ge=0, description="of the prototype loss; it is off during warm-up")
    group_weight: float = Field(0.3, ge=0, description="of the group loss")
    prototype_temperature: float = Field(0.5, gt=0, description="T: lower separates prototypes more sharply")
    group_temperature: float = Field(0.1, gt=0, description="tau: lower makes the choice of a group sharper")
    group_momentum: float = Field(0.99, ge=0, lt=1, description="beta: fraction of a group that an update keeps")
    reset_every: int | None = Field(None, ge=1, description="steps between group resets; null: as many as groups")
    bank_size: int = Field(2560, ge=1, description="rows of the feature bank behind the resets")
    latent_noise: float = Field(
        0.001, ge=0, description="standard deviation of the noise on online features; off during warm-up"
    )
    target_momentum: Probability = Field(0.996, description="fraction of the target network that a step keeps")
    increase_momentum: bool = Field(False, description="cosine from target_momentum to 1 over the run")
    reference: Later[bool] = Field(
        False,
        description="compute as the reference code does: two updates of the target a step, raw features in the groups, "
        "empty prototypes at logit -10, a cosine that never reaches its end (docs/differences.md)",
    )


class OptimConfig(Section):
    """Optimiser and schedules; the defaults are the reference code's."""

    epochs: int = Field(1000, ge=1, description="passes over the images")
    warmup_epochs: int = Field(
        50, ge=0, description="first epochs: rising rate, neither prototype loss nor latent noise"
    )
    batch_size: int = Field(256, ge=2, description="images per step over all workers")
    balance: Later[Probability] = Field(
        0.0,
        description="after the warm-up, draw images so that small pseudo-clusters are seen: 0 takes each image once, 1 "
        "each cluster equally often (docs/data.md)",
    )
    lr: float = Field(0.05, gt=0, description="at a batch of 256; scaled in proportion to the batch")
    encoder_lr_factor: Later[float] = Field(1.0, gt=0, description="the encoder learns this many times faster")
    predictor_lr_factor: float = Field(10.0, gt=0, description="the predictor learns this many times faster")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="of SGD")
    decay_bias_and_norm: bool = Field(True, description="as in the reference, which decays every tensor")
    precision: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto",
        description="of the networks; auto is bfloat16 (autocast) on GPUs and processors with instructions for it, "
        "else float32; float64 is for proofs that two ways of running agree",
    )

    compile: Later[bool] = Field(
        False,
        description="compile the networks by torch.compile; the first step takes a minute, and needs a C++ compiler",
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> OptimConfig:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, more than epochs ({self.epochs}); lower warmup_epochs"
            )
        return self


class EStepConfig(Section):
    """Pseudo-labels by spherical k-means on the target network's features."""

    every: int = Field(1, ge=1, description="epochs between E-steps")
    warmup_every: Circumstance[int] = Field(
        1,
        ge=1,
        description="in the warm-up, whose steps use no pseudo-labels, make only each n-th of these E-steps: fewer "
        "metrics, the same labels",
    )
    batch_size: Circumstance[int] = Field(512, ge=1, description="images per worker and forward pass")
    restarts: int = Field(10, ge=1, description="starts of k-means; the lowest inertia wins")
    max_iter: int = Field(300, ge=1, description="iterations of a start at most")
    tol: float = Field(1e-4, ge=0, description="stop when the centres move less, relative to the features' variance")
    fit_rows: Later[int | None] = Field(
        None, ge=1, description="images that the centres are fitted on, drawn by the seed; null: all of them"
    )
    fit_views: Later[bool] = Field(
        False, description="with a frozen backbone: fit the centres on each image's mean feature over all cached views"
    )
    probe: Circumstance[int] = Field(
        512, ge=0, description="images that the label-free objectives use (docs/objectives.md); 0 switches them off"
    )


class CheckpointConfig(Section):
    """When the state is saved, and how many saves are kept."""

    every_epochs: Environment[int] = Field(1, ge=1, description="epochs between saves; the last epoch is always saved")
    every_steps: Environment[int | None] = Field(None, ge=1, description="also inside an epoch, for epochs of hours")
    keep: Environment[int] = Field(
        2, ge=2, description="2 or more: a damaged checkpoint falls back to the one before it"
    )


class ProfileConfig(Section):
    """Where the time of a run goes (docs/scaling.md)."""

    steps: Circumstance[int] = Field(
        0, ge=0, description="training steps that torch's profiler records on each worker (`--profile`: 20); 0: none"
    )
    only: Later[Literal["all", "data", "compute"]] = Field(
        "all",
        description="data: batches come, and no step is made of them; compute: each step takes the epoch's first batch "
        "again, so that none waits for data; both for measuring alone",
    )


class MonitorConfig(Section):
    """How well the features of an E-step tell the classes apart (docs/objectives.md); needs images with classes."""

    knn_every: Circumstance[int] = Field(
        0, ge=0, description="epochs between measures of weighted k-nearest-neighbour accuracy; 0: none"
    )
    probe_every: Circumstance[int] = Field(0, ge=0, description="epochs between linear probes; 0: none")


AlarmLevel = Literal["ignore", "warn", "stop", "roll_back"]


class AlarmsConfig(Section):
    """What an alarm does: nothing, a warning, the end of the run, or a rollback to its last checkpoint."""

    not_finite: Circumstance[AlarmLevel] = Field(
        "warn",
        description="losses, gradients or weights that are not finite; where a warning is not enough because weights "
        "are, the run restarts from its last checkpoint",
    )
    collapse: Circumstance[AlarmLevel] = Field("warn", description="features have no spread, or sizes no entropy")
    empty_clusters: Circumstance[AlarmLevel] = Field("warn", description="clusters without images")
    giant_cluster: Circumstance[AlarmLevel] = Field(
        "warn", description="a cluster is nearer to having all images than to an equal share"
    )
    falling_entropy: Circumstance[AlarmLevel] = Field(
        "warn", description="size_entropy has fallen since the end of the warm-up"
    )
    steady_churn: Circumstance[AlarmLevel] = Field("warn", description="label_churn is high and does not fall")
    rank_spread: Circumstance[AlarmLevel] = Field("warn", description="the groups are not the same on all workers")
    empty_scores: Circumstance[AlarmLevel] = Field("warn", description="a high ACC with an NMI near 0")
    max_rollbacks: Circumstance[int] = Field(
        3, ge=1, description="returns to a checkpoint before an alarm of level roll_back ends the run"
    )
    rollback_lr_factor: Circumstance[float] = Field(
        0.5, gt=0, le=1, description="each return multiplies optim.lr by this, and changes the seed of views and noise"
    )

    @property
    def levels(self) -> dict[str, AlarmLevel]:
        """The level of each kind of alarm."""
        others = {"max_rollbacks", "rollback_lr_factor"}
        return {name: getattr(self, name) for name in type(self).model_fields if name not in others}


class WorkerRange(Section):
    """A number of workers that follows the cluster: as many as it has room for, within these bounds."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, more than max ({self.max}); lower min")
        return self


class ResourcesConfig(Section):
    """What the run asks of the Ray cluster."""

    workers: Environment[Annotated[int, Field(ge=1)] | WorkerRange] = Field(
        1, description="processes that train together; {min: 2, max: 8} follows the cluster as nodes come and go"
    )
    autoscale: Environment[bool] = Field(
        False, description="the cluster grows on demand: request what it lacks instead of refusing to start"
    )
    wait_minutes: Environment[float] = Field(
        10.0,
        gt=0,
        description="how long a fixed number of workers may wait for room, in total; {min, max} waits forever",
    )
    resize_seconds: Environment[float] = Field(
        60.0, gt=0, description="with {min, max}: seconds between checks whether a running group can grow"
    )
    gpus: Environment[bool | Literal["auto"]] = Field(
        "auto", description="one GPU per worker; auto uses GPUs when there are enough"
    )
    cpus_per_worker: Environment[float | None] = Field(
        None,
        gt=0,
        description="null: an equal share of all CPUs; a streaming run leaves one for reading images, and workers on "
        "GPUs that stream take one each",
    )
    max_failures: Environment[int] = Field(
        3, ge=0, description="worker-group restarts before the run gives up; announced preemptions do not count"
    )

    @property
    def worker_range(self) -> WorkerRange:
        """Fewest and most workers; the same number twice when it is fixed."""
        return (
            self.workers if isinstance(self.workers, WorkerRange) else WorkerRange(min=self.workers, max=self.workers)
        )


class TrackingConfig(Section):
    """MLflow."""

    enabled: Environment[bool] = Field(True, description="false trains without records")
    uri: Environment[str | None] = Field(
        None, description="any MLflow URI; null is MLFLOW_TRACKING_URI, or else an SQLite file in the storage folder"
    )
    experiment: Environment[str] = Field(
        "digpro", min_length=1, description="MLflow experiment that the run appears in"
    )
    system_metrics: Environment[bool] = Field(True, description="also record CPU, memory and GPU use")

    @field_serializer("uri", when_used="json")
    def _without_password(self, uri: str | None) -> str | None:
        """The URI is kept with a run, and shown, without its password."""
        return redacted(uri) if uri else uri


class RunConfig(Section):
    """All of one training run."""

    name: Environment[Annotated[str, AfterValidator(folder_name)] | None] = Field(
        None, description="name of the run and of its folder; null derives it from preset, data folder and settings"
    )
    storage: Environment[str] = Field(
        "runs", min_length=1, description="folder or pyarrow filesystem URI under which runs are kept"
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="of every random choice of the run")
    data: DataConfig
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    optim: OptimConfig = OptimConfig()
    estep: EStepConfig = EStepConfig()
    monitor: MonitorConfig = MonitorConfig()
    profile: ProfileConfig = ProfileConfig()
    alarms: AlarmsConfig = AlarmsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _backbone_settings_fit(self) -> RunConfig:
        model = self.model
        if model.weights is not None and not is_library_name(model.encoder):
            raise ValueError(
                f"model.weights is {model.weights}, and model.encoder={model.encoder} takes none; choose an encoder "
                "of a library, such as torchvision:resnet18"
            )
        if model.weights_prefix is not None and model.weights in (None, DEFAULT):
            raise ValueError(
                f"model.weights_prefix is {model.weights_prefix}, and model.weights is {model.weights}; set it to the "
                "path of a state dict, or leave the prefix out"
            )
        if model.freeze and model.weights is None and not model.encoder.startswith("python:"):
            raise ValueError(
                f"model.freeze=true would freeze the random weights of {model.encoder}; set model.weights (default, or "
                "the path of a state dict)"
            )
        return self

    @model_validator(mode="after")
    def _cached_features_are_there(self) -> RunConfig:
        needed = (("views.neighbours", self.views.neighbours, "0"), ("estep.fit_views", self.estep.fit_views, "false"))
        for key, value, off in needed:
            if value and not self.model.freeze:
                raise ValueError(
                    f"{key} is {str(value).lower()} and needs the features of a frozen backbone; set "
                    f"model.freeze=true, or {key}={off}"
                )
        return self
