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
        raise ValueError(f"the name has {size} bytes, more than the limit of {NAME_BYTES}; shorten it")
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
        min_length=1, description="folder or URI of a data set that `digpro ingest` wrote: shards and a manifest.json"
    )
    source: Environment[str | None] = Field(
        None, description="source to ingest into data.path if that has no manifest yet (see `digpro ingest --help`)"
    )
    classes: Environment[str | None] = Field(
        None,
        description="classes to ingest from data.source: the name of a list in the package, such as imagenet-10, or a "
        "file (docs/data.md); null: all",
    )
    features: Environment[str | None] = Field(
        None,
        description="folder in which the features of frozen backbones are cached; null: `features` in the storage "
        "folder",
    )
    image_size: int | None = Field(
        None,
        ge=4,
        description="images are decoded to squares of image_size x image_size pixels; null: 32, or as the pretrained "
        "backbone expects",
    )
    fit: Later[Literal["stretch", "crop"] | None] = Field(
        None,
        description="how an image becomes a square: stretch it, or crop its centre; null: crop for a pretrained "
        "backbone that expects it, otherwise stretch",
    )
    interpolation: Later[Literal["bilinear", "bicubic"] | None] = Field(
        None, description="interpolation for resizing images; null: bilinear, or as the pretrained backbone expects"
    )
    mean: Later[Channels | None] = Field(
        None,
        description="mean of each RGB channel in [0, 1], subtracted from the images; null: the pretrained backbone's, "
        "otherwise measured on the data set",
    )
    std: Later[Channels | None] = Field(
        None,
        description="standard deviation of each RGB channel, by which the images are divided; 0 only subtracts the "
        "channel's mean; null: as for data.mean",
    )
    mode: Circumstance[Literal["auto", "resident", "streaming"]] = Field(
        "auto",
        description="how images reach the workers, with the same result: resident keeps decoded images in the "
        "workers' memory, streaming reads them again each epoch with Ray Data, auto chooses by "
        "data.resident_limit_gb",
    )
    resident_limit_gb: Circumstance[float] = Field(
        4.0,
        gt=0,
        description="largest size of the decoded images, in GiB per worker, that data.mode=auto keeps in memory",
    )
    shuffle_window: Later[int | None] = Field(
        None,
        ge=1,
        description="number of images that are shuffled together, over all workers; streaming workers hold about "
        "twice as many in memory; null: 65,536, or as many as fit in 2 GiB if that is fewer",
    )

    @property
    def decoding(self) -> dict[str, Any]:
        """Arguments of `decode_table`, for a configuration whose open settings have been filled in."""
        return {"size": self.image_size, "fit": self.fit, "interpolation": self.interpolation}


class ViewsConfig(Section):
    """Random augmentation of one view; the defaults are the reference code's, which are SimCLR's without blur."""

    size: int | None = Field(
        None, ge=4, description="side of the square views in pixels; null: 32, or as the pretrained backbone expects"
    )
    cached: Later[int] = Field(
        8, ge=2, description="with a frozen backbone: number of augmented views of each image in the feature cache"
    )
    cache_seed: Later[int] = Field(
        0,
        ge=0,
        le=LARGEST_SEED,
        description="with a frozen backbone: seed of the cached views, separate from seed so that runs with different "
        "seeds share a cache",
    )
    neighbours: Later[int] = Field(
        0,
        ge=0,
        description="with a frozen backbone: k, where the second view shows one of the image's k nearest neighbours "
        "by the mean features of their views; 0: the image itself",
    )
    crop_scale: tuple[float, float] = Field(
        (0.08, 1.0), description="random crop: [low, high] of its area, as a fraction of the image's area"
    )
    crop_ratio: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="random crop: [low, high] of its width divided by its height"
    )
    rotation: float = Field(
        0.0,
        ge=0,
        le=180,
        description="largest random rotation in degrees; the angle is drawn from [-rotation, rotation]",
    )
    horizontal_flip: Probability = Field(
        0.5, description="probability of a left-right flip; 0 for images such as digits that must not be mirrored"
    )
    vertical_flip: Probability = Field(0.0, description="probability of an upside-down flip; 0.5 suits aerial images")
    jitter: Probability = Field(0.8, description="probability of colour jitter")
    brightness: Probability = Field(
        0.4, description="colour jitter: the brightness factor is drawn from [1 - brightness, 1 + brightness]"
    )
    contrast: Probability = Field(
        0.4, description="colour jitter: the contrast factor is drawn from [1 - contrast, 1 + contrast]"
    )
    saturation: Probability = Field(
        0.4, description="colour jitter: the saturation factor is drawn from [1 - saturation, 1 + saturation]"
    )
    hue: float = Field(
        0.1, ge=0, le=0.5, description="colour jitter: largest hue shift, as a fraction of the colour circle"
    )
    grayscale: Probability = Field(0.2, description="probability that a view is converted to grayscale")
    blur: Probability = Field(
        0.0, description="probability of Gaussian blur; 0, as in the reference code, switches it off"
    )
    blur_sigma: tuple[float, float] = Field(
        (0.1, 2.0), description="Gaussian blur: [low, high] of its standard deviation, in pixels of the view"
    )

    @model_validator(mode="after")
    def _ranges(self) -> ViewsConfig:
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {[low, high]}; give [low, high] with 0 < low <= high")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale is {list(self.crop_scale)}; a crop cannot exceed the image; keep it <= 1")
        return self


class ModelConfig(Section):
    """The networks; sizes are the reference code's."""

    encoder: Annotated[str, AfterValidator(encoder_name)] = Field(
        "resnet18",
        description="encoder: tiny (four convolutions, for images of about 16 pixels); resnet18, resnet34 or resnet50 "
        "(untrained); or torchvision:NAME, timm:NAME, python:MODULE:FUNCTION (docs/backbones.md)",
    )
    small_stem: bool = Field(
        True,
        description="for resnet18, resnet34 and resnet50: a 3x3 stem with stride 1 and no max-pool, for images up to "
        "about 64 pixels",
    )
    weights: Later[str | None] = Field(
        None,
        description="initial weights of a torchvision, timm or python encoder: null (as created), default (the "
        "library's pretrained weights) or the path of a state dict",
    )
    weights_prefix: Later[str | None] = Field(
        None, description="prefix of the encoder's parameter names in the state dict, such as teacher; null: detected"
    )
    partial_weights: Later[bool] = Field(
        False, description="accept a state dict in which parameter names are missing or unexpected"
    )
    freeze: Later[bool] = Field(
        False,
        description="keep the encoder's weights fixed: its features are cached once, and only the heads are trained "
        "on them",
    )
    start_from: Later[str | None] = Field(
        None,
        description="folder of a finished run; training starts from its networks, groups and feature bank (`digpro "
        "train --from`)",
    )
    projector_hidden: int = Field(4096, ge=1, description="width of the projector's hidden layer")
    feature_size: int = Field(256, ge=2, description="D: length of the features that are clustered")
    predictor_hidden: int = Field(4096, ge=1, description="width of the predictor's hidden layer")


class MethodConfig(Section):
    """DigPro's own settings (arXiv 2401.13581)."""

    num_clusters: int | None = Field(
        None, ge=2, description="K, the number of clusters; null: the number of classes in the manifest"
    )
    num_groups: int | None = Field(
        None,
        ge=1,
        description="number of momentum groups; more groups than clusters give a finer division; null: K, as in the "
        "paper",
    )
    instance_weight: float = Field(1.0, ge=0, description="weight of the instance loss")
    prototype_weight: float = Field(0.1, ge=0, description="weight of the prototype loss, which is off during warm-up")
    group_weight: float = Field(0.3, ge=0, description="weight of the group loss")
    prototype_temperature: float = Field(
        0.5, gt=0, description="temperature T of the prototype loss; a lower value separates prototypes more sharply"
    )
    group_temperature: float = Field(
        0.1, gt=0, description="temperature tau of the group loss; a lower value makes the choice of a group sharper"
    )
    group_momentum: float = Field(
        0.99, ge=0, lt=1, description="momentum beta of the groups: the fraction of a group that each update keeps"
    )
    reset_every: int | None = Field(
        None, ge=1, description="steps between resets of the groups; null: as many steps as there are groups"
    )
    bank_size: int = Field(
        2560, ge=1, description="number of features in the feature bank, from which the groups are reset"
    )
    latent_noise: float = Field(
        0.001,
        ge=0,
        description="standard deviation of the noise added to online features; the noise is off during warm-up",
    )
    target_momentum: Probability = Field(
        0.996, description="momentum of the target network: the fraction of its weights that each step keeps"
    )
    increase_momentum: bool = Field(
        False,
        description="raise the target network's momentum from method.target_momentum to 1 over the run, along a cosine",
    )
    reference: Later[bool] = Field(
        False,
        description="compute as the reference code does: update the target network twice per step, update groups with "
        "unnormalised features, give empty prototypes the logit -10, end the run before the learning "
        "rate's cosine ends (docs/differences.md)",
    )


class OptimConfig(Section):
    """Optimiser and schedules; the defaults are the reference code's."""

    epochs: int = Field(1000, ge=1, description="number of passes over the images")
    warmup_epochs: int = Field(
        50,
        ge=0,
        description="number of warm-up epochs at the start: the learning rate rises, and prototype loss and latent "
        "noise are off",
    )
    batch_size: int = Field(256, ge=2, description="images per step, over all workers together")
    balance: Later[Probability] = Field(
        0.0,
        description="how strongly small pseudo-clusters are oversampled after the warm-up: 0 draws each image once "
        "per epoch, 1 draws each cluster equally often (docs/data.md)",
    )
    lr: float = Field(
        0.05,
        gt=0,
        description="peak learning rate at a batch of 256 images; it is scaled in proportion to optim.batch_size",
    )
    encoder_lr_factor: Later[float] = Field(
        1.0, gt=0, description="the encoder's learning rate, as a multiple of the scheduled rate"
    )
    predictor_lr_factor: float = Field(
        10.0, gt=0, description="the predictor's learning rate, as a multiple of the scheduled rate"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    weight_decay: float = Field(5e-4, ge=0, description="SGD weight decay")
    decay_bias_and_norm: bool = Field(
        True, description="apply weight decay to biases and normalisation layers too, as the reference code does"
    )
    precision: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto",
        description="number format in which the networks compute: auto is bfloat16 (autocast) on GPUs and CPUs that "
        "support it in hardware, otherwise float32; float64 is for proving that two ways of running agree",
    )

    compile: Later[bool] = Field(
        False,
        description="compile the networks with torch.compile, which needs a C++ compiler and makes the first step "
        "take a minute",
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
        description="during the warm-up, which does not use pseudo-labels, run only every n-th E-step: fewer metrics, "
        "the same labels",
    )
    batch_size: Circumstance[int] = Field(512, ge=1, description="images per worker in a forward pass of the E-step")
    restarts: int = Field(
        10, ge=1, description="number of k-means starts per E-step; the one with the lowest inertia is kept"
    )
    max_iter: int = Field(300, ge=1, description="largest number of iterations of one k-means start")
    tol: float = Field(
        1e-4, ge=0, description="k-means stops when the centres move less than this, relative to the features' variance"
    )
    fit_rows: Later[int | None] = Field(
        None,
        ge=1,
        description="number of images on which the k-means centres are fitted, drawn with seed; null: all images",
    )
    fit_views: Later[bool] = Field(
        False,
        description="with a frozen backbone: cluster each image's mean feature over its cached views, not the feature "
        "of the image as it is",
    )
    probe: Circumstance[int] = Field(
        512,
        ge=0,
        description="number of images used for the label-free objectives (docs/objectives.md); 0: do not compute them",
    )


class CheckpointConfig(Section):
    """When the state is saved, and how many saves are kept."""

    every_epochs: Environment[int] = Field(
        1, ge=1, description="epochs between checkpoints; the last epoch always saves one"
    )
    every_steps: Environment[int | None] = Field(
        None,
        ge=1,
        description="steps between checkpoints inside an epoch, for epochs that take hours; null: none inside an epoch",
    )
    keep: Environment[int] = Field(
        2,
        ge=2,
        description="number of newest checkpoints to keep; 2 or more, so that the previous one can replace a damaged "
        "one",
    )


class ProfileConfig(Section):
    """Where the time of a run goes (docs/scaling.md)."""

    steps: Circumstance[int] = Field(
        0,
        ge=0,
        description="number of training steps that torch's profiler records on each worker (`digpro train --profile`: "
        "20); 0: none",
    )
    only: Later[Literal["all", "data", "compute"]] = Field(
        "all",
        description="the part of training to run, for measuring its speed alone: data loads batches without training "
        "steps; compute repeats each epoch's first batch, so that no step waits for data; all is normal "
        "training",
    )


class MonitorConfig(Section):
    """How well the features of an E-step tell the classes apart (docs/objectives.md); needs images with classes."""

    knn_every: Circumstance[int] = Field(
        0, ge=0, description="epochs between measurements of weighted k-nearest-neighbour accuracy; 0: none"
    )
    probe_every: Circumstance[int] = Field(0, ge=0, description="epochs between linear probes; 0: none")


AlarmLevel = Literal["ignore", "warn", "stop", "roll_back"]


class AlarmsConfig(Section):
    """What an alarm does: nothing, a warning, the end of the run, or a rollback to its last checkpoint."""

    not_finite: Circumstance[AlarmLevel] = Field(
        "warn",
        description="what to do when losses, gradients or weights are not finite; if weights are not finite, a "
        "warning is not enough, and the run restarts from its last checkpoint",
    )
    collapse: Circumstance[AlarmLevel] = Field(
        "warn",
        description="what to do when the features collapse: they have almost no spread, or almost all images are in "
        "one cluster",
    )
    empty_clusters: Circumstance[AlarmLevel] = Field("warn", description="what to do when clusters have no images")
    giant_cluster: Circumstance[AlarmLevel] = Field(
        "warn",
        description="what to do when the largest cluster's share of the images is more than halfway from an equal "
        "share to all images",
    )
    falling_entropy: Circumstance[AlarmLevel] = Field(
        "warn", description="what to do when size_entropy has fallen since the end of the warm-up"
    )
    steady_churn: Circumstance[AlarmLevel] = Field(
        "warn", description="what to do when label_churn is high and does not fall"
    )
    rank_spread: Circumstance[AlarmLevel] = Field(
        "warn", description="what to do when the groups differ between workers"
    )
    empty_scores: Circumstance[AlarmLevel] = Field(
        "warn", description="what to do when ACC is high although NMI is near 0"
    )
    max_rollbacks: Circumstance[int] = Field(
        3, ge=1, description="number of rollbacks after which an alarm of level roll_back ends the run"
    )
    rollback_lr_factor: Circumstance[float] = Field(
        0.5,
        gt=0,
        le=1,
        description="each rollback multiplies optim.lr by this factor, and changes the seed of views and noise",
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
        1,
        description="number of processes that train together; {min: 2, max: 8} adapts to the cluster as nodes join "
        "and leave",
    )
    autoscale: Environment[bool] = Field(
        False, description="request missing resources from a cluster that grows on demand, instead of refusing to start"
    )
    wait_minutes: Environment[float] = Field(
        10.0,
        gt=0,
        description="minutes in total that a fixed number of workers may wait for free resources; with {min, max} "
        "there is no limit",
    )
    resize_seconds: Environment[float] = Field(
        60.0,
        gt=0,
        description="with workers={min, max}: seconds between checks whether a running worker group can grow",
    )
    gpus: Environment[bool | Literal["auto"]] = Field(
        "auto", description="give each worker a GPU: true, false, or auto, which uses GPUs if there are enough"
    )
    cpus_per_worker: Environment[float | None] = Field(
        None,
        gt=0,
        description="CPUs reserved for each worker; null: an equal share of all CPUs, of which a streaming run leaves "
        "one for reading images; workers that stream on GPUs get one each",
    )
    max_failures: Environment[int] = Field(
        3,
        ge=0,
        description="number of times that the worker group restarts after a failure before the run gives up; "
        "announced preemptions do not count",
    )

    @property
    def worker_range(self) -> WorkerRange:
        """Fewest and most workers; the same number twice when it is fixed."""
        return (
            self.workers if isinstance(self.workers, WorkerRange) else WorkerRange(min=self.workers, max=self.workers)
        )


class TrackingConfig(Section):
    """MLflow."""

    enabled: Environment[bool] = Field(True, description="record the run in MLflow")
    uri: Environment[str | None] = Field(
        None,
        description="MLflow tracking URI; null: MLFLOW_TRACKING_URI, or if that is unset an SQLite file in the "
        "storage folder",
    )
    experiment: Environment[str] = Field(
        "digpro", min_length=1, description="MLflow experiment in which the run is recorded"
    )
    system_metrics: Environment[bool] = Field(True, description="also record CPU, memory and GPU usage")

    @field_serializer("uri", when_used="json")
    def _without_password(self, uri: str | None) -> str | None:
        """The URI is kept with a run, and shown, without its password."""
        return redacted(uri) if uri else uri


class RunConfig(Section):
    """All of one training run."""

    name: Environment[Annotated[str, AfterValidator(folder_name)] | None] = Field(
        None, description="name of the run and of its folder; null: derived from preset, data folder and settings"
    )
    storage: Environment[str] = Field(
        "runs", min_length=1, description="folder or pyarrow filesystem URI in which runs are stored"
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of every random choice of the run")
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
                f"model.weights is {model.weights}, but model.encoder={model.encoder} takes no weights; choose a "
                "library's encoder, such as torchvision:resnet18"
            )
        if model.weights_prefix is not None and model.weights in (None, DEFAULT):
            raise ValueError(
                f"model.weights_prefix is {model.weights_prefix}, but model.weights is {model.weights}; set "
                "model.weights to the path of a state dict, or leave model.weights_prefix out"
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
                    f"{key}={str(value).lower()} needs the features of a frozen backbone; set model.freeze=true, or "
                    f"{key}={off}"
                )
        return self
