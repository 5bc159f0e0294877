"""DigPro as a scikit-learn estimator, for programs and notebooks with images in an array or a folder."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pipeline.backbone_features.build_cache import ensure_cache
from pipeline.backbone_features.cache import read_backbone
from pipeline.backbone_features.encode import LocalEncoders
from pipeline.checks.settings import check_settings
from pipeline.config.loading import load_config, with_settings
from pipeline.config.models import RunConfig
from pipeline.data.decode import fitted
from pipeline.data.ingest import ingest
from pipeline.data.read import read_origins
from pipeline.data.shards import IMAGE_TYPE, has_manifest
from pipeline.data.sources import open_source
from pipeline.errors import CheckpointError, ConfigError
from pipeline.inference.image_parts import SOURCE_PART_IMAGES
from pipeline.inference.model import ClusterModel
from pipeline.inference.predict import predict
from pipeline.runs.identity import read_started_run, run_folder
from pipeline.runs.report import ASSIGNMENTS
from pipeline.runs.train import resolve, train
from pipeline.storage import Folder, join
from pipeline.tracking import open_run
from pipeline.training.checkpoint import newest_in
from pipeline.training.in_process import train_in_process
from pipeline.training.job import Job

BATCH = 64  # images in a forward pass
NAME = "image "  # and its place in the array, as an image's path
# Settings that parameters decide, and what to give in their place.
INSTEAD = {
    "method.num_clusters": "give n_clusters",
    "seed": "give random_state",
    "storage": "give the parameter storage",
    "data.path": "give the folder to fit",
    "data.source": "give the source to fit",
}
INSTEAD_ON_ARRAYS = INSTEAD | {"model.start_from": "leave it out for an array, or give a folder to fit"}
Array = np.ndarray[Any, Any]


class DigPro(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Deep clustering of images without labels.

    On an array of images, it trains in this process, without Ray. On a folder of images or shards, it trains on Ray
    like `digpro train`: the run is recorded, and the same call resumes it. With the same images in the same order, seed
    and precision both find the same clusters.

    Parameters
    ----------
    n_clusters : int
    preset : str
        Name of a preset (`digpro presets`), or path of a .yaml file: network, augmentation, and how long to train.
    settings : mapping, optional
        Settings that differ from the preset's, by dotted key: ``{"optim.epochs": 40}``.
    image_shape : tuple, optional
        (H, W) or (H, W, 3) of images that come as rows of a two-dimensional array, such as those of `load_digits`.
    random_state : int, RandomState or None
        An integer is the seed of the run; from anything else a seed is drawn.
    storage : str
        Folder or URI of runs on Ray.
    verbose : bool
        Print a line for each epoch.

    Attributes
    ----------
    labels_ : ndarray (n,) int64
        Cluster of each image.
    cluster_centers_ : ndarray (n_clusters, D) float32
        Unit vectors in the feature space of `transform`.
    n_features_in_ : int
        Values per image of the array; for a folder, per image as the network reads it.
    n_iter_ : int
        Epochs of the training.
    history_ : list of dict
        Metrics of each epoch, as docs/objectives.md describes them.
    paths_ : ndarray (n,) of str
        Paths of a folder's images, in the order of `labels_`, which is not the order of the files.
    run_ : str
        Folder of a run on Ray.
    """

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        preset: str = "digits",
        settings: Mapping[str, Any] | None = None,
        image_shape: tuple[int, ...] | None = None,
        random_state: Any = 0,
        storage: str = "runs",
        verbose: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.preset = preset
        self.settings = settings
        self.image_shape = image_shape
        self.random_state = random_state
        self.storage = storage
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> DigPro:
        """Train on images, and cluster them.

        Parameters
        ----------
        X : array or str or Path
            RGB (n, H, W, 3) or gray (n, H, W) images: uint8, other integers from 0 to 255, or floats from 0 (black) to
            1 (white). Or a folder of images, a folder of shards, or any source of `digpro ingest`.
        y : ignored

        Raises
        ------
        ValueError
            When the array does not hold images.
        ConfigError, DataError
            When the settings contradict each other or do not fit the images.
        """
        if isinstance(X, (str, Path)):
            return self._fit_source(str(X))
        self._refuse(INSTEAD_ON_ARRAYS)
        images = as_images(X, self.image_shape)
        # keeps the caller's torch random state
        with TemporaryDirectory(prefix="digpro-") as folder, torch.random.fork_rng():
            job = self._prepare(images, Path(folder))
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            state = train_in_process(job, device, self._echo)
            assert state.pseudo is not None
            values = {"model": state.model.state_dict(), "centers": state.pseudo.centers}
            if job.feature_cache is not None:
                values["backbone"] = read_backbone(Folder(job.feature_cache))
            model = ClusterModel(job.config, job.manifest, values)
            self.labels_ = np.empty(len(images), np.int64)
            self.labels_[_places(job.config.data.path)] = state.pseudo.labels.cpu()
        self._keep(model, job.config, state.history, np.shape(X)[1:])
        return self

    def fit_predict(self, X: Any, y: Any = None) -> Array:
        """`labels_` after `fit`."""
        return self.fit(X).labels_

    def predict(self, X: Any) -> Array:
        """Cluster (n,) int64 of each image of an array."""
        return self._apply(X, lambda similarities, _: predict(similarities).cluster)

    def transform(self, X: Any) -> Array:
        """Unit features (n, D) float32 of the images of an array."""
        return self._apply(X, lambda _, features: features)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean cosine between the images of an array and the centres of their clusters: higher is tighter.

        It compares models with the same number of clusters. With known classes, score `predict` by a scikit-learn
        metric.
        """
        return float(self._apply(X, lambda similarities, _: similarities.max(dim=1).values).mean(dtype=np.float64))

    @property
    def _n_features_out(self) -> int:
        return int(self.cluster_centers_.shape[1])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []  # features are float32
        return tags

    def _echo(self, line: str) -> None:
        if self.verbose:
            print(line, flush=True)

    def _refuse(self, instead: Mapping[str, str]) -> None:
        """ConfigError for settings that would have no effect; `instead` has the remedy by the setting."""
        for key, value in (self.settings or {}).items():
            if key in instead:
                raise ConfigError(f"DigPro(settings) has {key}={value!r}, which has no effect; {instead[key]}")

    def _config(self, places: Mapping[str, Any]) -> RunConfig:
        state = self.random_state
        seed = state if isinstance(state, (int, np.integer)) else check_random_state(state).randint(2**31)
        own = {"method.num_clusters": self.n_clusters, "seed": int(seed)}
        return with_settings(load_config(self.preset), {**(self.settings or {}), **own, **places}, "DigPro(settings)")

    def _prepare(self, images: Array, folder: Path) -> Job:
        """The job for images (n, H, W, 3) uint8, with its files in a folder."""
        places = {"name": "run", "storage": f"{folder}/runs", "data.path": f"{folder}/shards", "data.source": None}
        alone = {"data.mode": "resident", "resources.workers": 1, "tracking.enabled": False}
        config = resolve(self._config(places | alone), "run")
        source = folder / "images.parquet"
        pq.write_table(pa.table({"image": pa.array(list(_encoded(images)), IMAGE_TYPE)}), source)
        manifest = ingest(str(source), config.data.path)
        job = Job(config, manifest, check_settings(config, manifest), open_run(config, run_folder(config).make()))
        if not config.model.freeze:
            return job
        return replace(job, feature_cache=ensure_cache(config, manifest, self._echo, encoders=LocalEncoders())[0].path)

    def _fit_source(self, source: str) -> DigPro:
        """Train on Ray."""
        self._refuse(INSTEAD)
        places: dict[str, Any] = {"storage": self.storage, "data.path": source, "data.source": None}
        if not has_manifest(source):
            stamp = open_source(source, SOURCE_PART_IMAGES).stamp  # changes when files are added or changed
            places |= {"data.path": join(self.storage, f"shards-{stamp[:8]}"), "data.source": source}
        summary = train(self._config(places), label=Path(self.preset).stem, echo=self._echo)
        run = Folder(summary["folder"])
        config, manifest = read_started_run(run)
        values = newest_in(run.path)
        if values is None:
            raise CheckpointError(f"{run.path} no longer has a checkpoint; restore it, or choose another storage")
        size = config.data.decoding["size"]
        self._keep(ClusterModel(config, manifest, values), config, values["history"], (size, size, 3))
        found = pq.read_table(f"{run.root}/{ASSIGNMENTS}", columns=["path", "cluster"], filesystem=run.files)
        self.run_, self.labels_ = run.path, found.column("cluster").to_numpy()
        self.paths_ = found.column("path").to_numpy()
        return self

    def _keep(self, model: ClusterModel, config: RunConfig, history: list[dict[str, float]], shape: Any) -> None:
        self.model_, self.decoding_ = model.eval(), config.data.decoding
        self.cluster_centers_ = model.centers.numpy()
        self.n_features_in_ = int(np.prod(shape))
        self.n_iter_, self.history_ = config.optim.epochs, history

    def _apply(self, X: Any, choose: Callable[[Tensor, Tensor], Tensor]) -> Array:
        check_is_fitted(self)
        if isinstance(X, (str, Path)):
            raise ValueError(f"{X} is a folder or file, but an array is needed; use `digpro assign` for folders")
        images, found = as_images(X, self.image_shape), []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                batch = torch.tensor(images[start : start + BATCH]).permute(0, 3, 1, 2)  # a copy: X may be read-only
                block = torch.stack([fitted(image, **self.decoding_) for image in batch])
                found.append(choose(*self.model_(block.permute(0, 2, 3, 1).contiguous())))
        return torch.cat(found).numpy()


def as_images(X: Any, image_shape: tuple[int, ...] | None = None) -> Array:
    """An array of images as RGB uint8 (n, H, W, 3).

    Raises
    ------
    ValueError
        When `X` is not an array of images; the message says what it is.
    """
    if issparse(X):
        raise ValueError(f"X is a sparse {type(X).__name__}; give a dense array, such as X.toarray()")
    images = np.asarray(X)
    if images.ndim == 2 and image_shape is not None:
        if images.shape[1] != np.prod(image_shape):
            raise ValueError(
                f"X has {images.shape[1]} numbers per row, but image_shape={image_shape} needs {np.prod(image_shape)}; "
                "correct image_shape"
            )
        images = images.reshape(len(images), *image_shape)
    _check_shape(images)
    if images.ndim == 3:
        images = images[..., None]
    return np.ascontiguousarray(np.broadcast_to(_as_uint8(images), (*images.shape[:3], 3)))


def _check_shape(images: Array) -> None:
    shape, wanted = images.shape, "give images of shape (n, H, W, 3), or (n, H, W) for gray ones"
    if images.ndim == 2:
        wanted += ", or set image_shape=(H, W) if each row is an image"
    elif images.ndim == 3 and shape[2] in (3, 4):
        wanted = "this looks like a single image, but an array of several is needed: (n, H, W, 3)"
    elif images.ndim == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        wanted = "channels come last: give X.transpose(0, 2, 3, 1)"
    elif images.ndim in (3, 4) and min(shape) > 0 and shape[3:] in ((), (1,), (3,)):
        return
    raise ValueError(f"X is {images.dtype} of shape {shape}; {wanted}")


def _as_uint8(images: Array) -> Array:
    """Pixels as uint8; ValueError for numbers that are not pixels."""
    kind, meant = images.dtype.kind, "integers from 0 to 255, or floats from 0 (black) to 1 (white)"
    if images.dtype == np.uint8:
        return images
    if kind not in "iuf":
        raise ValueError(f"X is {images.dtype}; give {meant}")
    low, high = images.min(), images.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"X is {images.dtype} with NaN or infinite values; give {meant}")
    if low < 0 or high > (1 if kind == "f" else 255):
        raise ValueError(f"X is {images.dtype} from {low} to {high}; give {meant}")
    return np.rint(images * 255).astype(np.uint8) if kind == "f" else images.astype(np.uint8)


def _encoded(images: Array) -> Iterator[dict[str, Any]]:
    """Rows of the Hugging Face image layout; PNG keeps every pixel."""
    for number, image in enumerate(images):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        yield {"bytes": stream.getvalue(), "path": f"{NAME}{number}"}


def _places(shards: str) -> Array:
    """The place (n,) int64 in the array of each image of the shards that were made from it."""
    paths = (path for table in read_origins(shards) for path in table["path"].to_pylist())
    return np.fromiter((int(path.removeprefix(NAME)) for path in paths), np.int64)
