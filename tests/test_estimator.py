"""The estimator: arrays of every kind, scikit-learn's conventions, and the result of `digpro train`."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from PIL import Image
from scipy.sparse import csr_array, issparse
from scipy.special import expit
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score, make_scorer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted

from pipeline import DigPro
from pipeline.config.loading import load_config, with_settings
from pipeline.config.models import RunConfig
from pipeline.data.decode import decode
from pipeline.data.shards import IMAGE_TYPE
from pipeline.errors import ConfigError
from pipeline.estimator import _encoded, as_images
from pipeline.runs.train import train
from tests.helpers.images import put
from tests.helpers.pictures import saved
from tests.helpers.runs import ONE_THREAD, SETTINGS, settings

QUICK = {
    "optim.epochs": 1,
    "optim.warmup_epochs": 0,
    "optim.batch_size": 32,
    "optim.precision": "float32",
    "model.projector_hidden": 32,
    "model.predictor_hidden": 32,
    "model.feature_size": 16,
    "method.num_groups": None,
    "method.bank_size": 64,
    "estep.restarts": 1,
    "estep.probe": 0,
}
TINY = QUICK | {
    "optim.batch_size": 4,
    "model.projector_hidden": 8,
    "model.predictor_hidden": 8,
    "model.feature_size": 8,
    "method.bank_size": 16,
    "data.image_size": 8,
    "views.size": 8,
}
FROZEN = QUICK | {
    "model.encoder": "python:tests.helpers.backbones:with_input",
    "model.freeze": True,
    "data.image_size": None,
    "views.size": None,
    "views.cached": 2,
    "views.neighbours": 3,
}
WORDING = "the error is raised, but its message speaks of images, in words of our own"
NOT_FOR_IMAGES = {
    "check_complex_data": WORDING,
    "check_estimators_empty_data_messages": WORDING,
    "check_fit2d_1sample": WORDING,
    "check_fit2d_predict1d": WORDING,
    "check_dtype_object": "arrays of Python objects are refused, because images are numbers",
    "check_n_features_in_after_fitting": "images of another size are resized",
    "check_transformer_general": "images of another size are resized",
    "check_dataframe_column_names_consistency": "pixels have no names",
}


def quick(**parameters: Any) -> DigPro:
    return DigPro(3, settings=QUICK, **parameters)


@pytest.fixture(autouse=True)
def _without_ray_afterwards() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def fitted(images: np.ndarray[Any, Any]) -> DigPro:
    return quick().fit(images)


class OfTables(DigPro):
    """Takes the tables of scikit-learn's checks: a row is an image, and a number is a pixel.

    Some checks ask for one cluster; it finds two then, which is the least.
    """

    def fit(self, X: Any, y: Any = None) -> DigPro:
        return super().fit(self._images(X))

    def _apply(self, X: Any, choose: Any) -> np.ndarray[Any, Any]:
        check_is_fitted(self)
        return super()._apply(self._images(X), choose)

    def _config(self, places: Mapping[str, Any]) -> RunConfig:
        return super()._config({**TINY, **places, "method.num_clusters": max(2, self.n_clusters)})

    def _images(self, X: Any) -> Any:
        """Gray images (n, 1, F, 1) with floats from 0 to 1, and NaN and infinity where they were."""
        table = X if issparse(X) else np.asarray(X)
        if issparse(X) or table.ndim != 2 or table.dtype.kind not in "iuf":
            return table
        values = table.astype(np.float64)
        return np.where(np.isfinite(values), expit(values), values)[:, None, :, None]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


@pytest.mark.slow
@parametrize_with_checks([OfTables(2)], expected_failed_checks=lambda _: NOT_FOR_IMAGES, xfail_strict=True)
def test_checks_of_scikit_learn(estimator: DigPro, check: Any) -> None:
    check(estimator)


def test_fit_keeps_scikit_learns_promises(images: np.ndarray[Any, Any], fitted: DigPro) -> None:
    before, estimator = images.copy(), quick()
    with pytest.raises(NotFittedError):
        estimator.predict(images)
    images.flags.writeable = False  # as joblib maps arrays into processes
    assert estimator.fit(images) is estimator
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(estimator.labels_, fitted.labels_)  # the seed decides
    np.testing.assert_array_equal(estimator.predict(images), estimator.labels_)
    assert estimator.labels_.shape == (70,)
    assert estimator.labels_.dtype == np.int64
    assert estimator.cluster_centers_.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(estimator.cluster_centers_, axis=1), 1, atol=1e-5)
    assert (estimator.n_features_in_, estimator.n_iter_, len(estimator.history_)) == (192, 1, 2)
    assert estimator.get_params() == quick().get_params()
    assert {name for name in vars(estimator) if not name.endswith("_")} == estimator.get_params().keys()


def test_the_features_of_a_row_are_its_numbers(images: np.ndarray[Any, Any]) -> None:
    """Although the network sees gray images in three channels."""
    rows = images[..., 0].reshape(len(images), 64)
    assert quick(image_shape=(8, 8)).fit(rows).n_features_in_ == 64


def test_an_image_is_predicted_alone_as_among_others(images: np.ndarray[Any, Any], fitted: DigPro) -> None:
    features, order = fitted.transform(images), np.random.default_rng(1).permutation(len(images))
    np.testing.assert_allclose(fitted.transform(images[order]), features[order], atol=1e-5)
    np.testing.assert_allclose(fitted.transform(images[:1]), features[:1], atol=1e-5)
    nearest = (features @ fitted.cluster_centers_.T).max(axis=1)
    assert fitted.score(images) == pytest.approx(nearest.mean(), abs=1e-5)
    assert fitted.get_feature_names_out().tolist() == [f"digpro{i}" for i in range(16)]


@pytest.mark.filterwarnings("error")
def test_arrays_that_are_read_only_or_gray_are_no_reason_for_a_warning(
    images: np.ndarray[Any, Any], fitted: DigPro
) -> None:
    fixed = images.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(fitted.predict(fixed), fitted.labels_)
    assert fitted.predict(fixed[..., 0]).shape == (70,)


def test_a_copy_predicts_the_same(images: np.ndarray[Any, Any], fitted: DigPro, tmp_path: Path) -> None:
    joblib.dump(fitted, tmp_path / "model")
    for copy in (pickle.loads(pickle.dumps(fitted)), joblib.load(tmp_path / "model")):
        np.testing.assert_array_equal(copy.predict(images), fitted.labels_)
    assert not hasattr(clone(fitted), "labels_")


def test_the_state_of_torch_and_ray_is_left_alone(
    images: np.ndarray[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ray.shutdown()  # if another test has left it on
    quick().fit(images)
    assert torch.equal(torch.rand(3), expected)
    assert not ray.is_initialized()
    assert capsys.readouterr().out == ""


def test_a_verbose_one_shows_each_epoch(images: np.ndarray[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    quick(verbose=True).fit(images)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["0/1", "1/1"]


def test_it_works_in_a_pipeline_and_in_a_grid_search(images: np.ndarray[Any, Any]) -> None:
    """Flat rows, as scikit-learn hands images around."""
    flat = images[..., 0].reshape(len(images), 64) / 255
    truth = np.arange(len(images)) % 3
    estimator = make_pipeline(FunctionTransformer(), quick(image_shape=(8, 8)))
    search = GridSearchCV(
        estimator, {"digpro__n_clusters": [2, 3]}, scoring=make_scorer(adjusted_rand_score), cv=2, error_score="raise"
    )
    search.fit(flat, truth)
    assert search.best_params_["digpro__n_clusters"] in (2, 3)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_kinds_of_arrays_are_one_image() -> None:
    gray = np.arange(0, 250, 10, dtype=np.uint8).reshape(1, 5, 5)
    expected = np.repeat(gray[..., None], 3, axis=3)
    forms = [gray, gray[..., None], expected, gray.astype(np.int64), gray / 255, (gray / 255).astype(np.float32)]
    for images in [*forms, gray.tolist(), np.asfortranarray(expected)]:
        np.testing.assert_array_equal(as_images(images), expected)
    np.testing.assert_array_equal(as_images(gray.reshape(1, 25), (5, 5)), expected)
    np.testing.assert_array_equal(as_images(expected.reshape(1, 75), (5, 5, 3)), expected)


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((9, 64)), "set image_shape="),
        (np.zeros((8, 8, 3)), "looks like a single image"),
        (np.zeros((9, 3, 8, 8)), "channels come last"),
        (np.zeros((9, 8, 8, 4)), "of shape \\(9, 8, 8, 4\\)"),
        (np.zeros((0, 8, 8, 3)), "of shape \\(0, 8, 8, 3\\)"),
        (np.full((2, 8, 8), 255.0), "from 255.0 to 255.0; give integers from 0 to 255, or floats from 0"),
        (np.full((2, 8, 8), -0.5), "from -0.5"),
        (np.full((2, 8, 8), np.nan), "with NaN or infinite values"),
        (np.full((2, 8, 8), np.inf), "with NaN or infinite values"),
        (csr_array((9, 64)), "X is a sparse csr_array; give a dense array"),
        (np.full((2, 8, 8), 256), "from 256 to 256"),
        (np.zeros((2, 8, 8), dtype=bool), "X is bool"),
        (np.array([["a", "b"]]), "of shape \\(1, 2\\)"),
    ],
)
def test_what_is_no_array_of_images_is_refused(array: np.ndarray[Any, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        quick().fit(array)


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="X has 64 numbers per row, but image_shape=\\(5, 5\\) needs 25"):
        quick(image_shape=(5, 5)).fit(np.zeros((9, 64)))


def test_settings_that_do_not_go_together_are_named(images: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ConfigError, match=r"optim\.epoch\b"):
        DigPro(3, settings={"optim.epoch": 1}).fit(images)
    with pytest.raises(ConfigError, match=r"optim\.batch_size=128 exceeds the 70 images"):
        DigPro(3).fit(images)


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [("method.num_clusters", "give n_clusters"), ("seed", "give random_state"), ("model.start_from", "leave it out")],
)
def test_settings_that_would_have_no_effect_are_refused(
    images: np.ndarray[Any, Any], setting: str, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=f"DigPro.settings. has {setting}=4, which has no effect; {remedy}"):
        DigPro(3, settings=QUICK | {setting: 4}).fit(images)


def test_heads_are_trained_on_a_frozen_backbone_without_ray(
    images: np.ndarray[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its features are computed once, if they have a folder to stay in."""
    ray.shutdown()
    own = FROZEN | {"data.features": f"{tmp_path}/features"}
    first = DigPro(3, settings=own, verbose=True).fit(images)
    assert "features: 70 images, 3 views each" in capsys.readouterr().out
    other = DigPro(4, settings=own, verbose=True).fit(images)
    assert "features: already complete" in capsys.readouterr().out
    assert not ray.is_initialized()
    assert (first.n_features_in_, first.cluster_centers_.shape, other.cluster_centers_.shape) == (192, (3, 16), (4, 16))
    for model in (first, pickle.loads(pickle.dumps(other))):
        assert np.mean(model.predict(images) == model.labels_) > 0.95  # the cache rounds to float16


def test_the_package_is_imported_in_no_time() -> None:
    script = "import sys, pipeline; assert not {'torch', 'ray', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_the_example_runs() -> None:
    script = Path(__file__).parents[1] / "docs" / "examples" / "estimator.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores = [float(line.rpartition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("ARI")]
    assert scores[0] > 0.5


@pytest.mark.slow
def test_folders_get_the_clusters_of_digpro_train(tmp_path: Path) -> None:
    """A folder of image files by a training of its own; a folder of shards finds the finished run."""
    random = np.random.default_rng(0)
    for number in range(24):
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8) // (1 + number % 3)
        kind = "JPEG" if number < 8 else "PNG"
        put(tmp_path / "photos" / f"{number:02}.{kind.lower()}", saved(Image.fromarray(pixels), kind))
    tiny = QUICK | {
        "optim.precision": "float64",  # equal labels; in others up to rounding
        "optim.epochs": 2,
        "optim.batch_size": 8,
        "resources.workers": 1,
        "tracking.enabled": False,
    }
    folder = {"data.path": f"{tmp_path}/shards", "data.source": f"{tmp_path}/photos", "storage": f"{tmp_path}/runs"}
    summary = train(with_settings(load_config("digits"), tiny | folder | {"method.num_clusters": 3}, "test"))
    table = pq.read_table(summary["outputs"]["assignments"], columns=["path", "cluster"]).to_pydict()
    expected = dict(zip(table["path"], table["cluster"], strict=True))
    assert len(expected) == 24

    of_photos = DigPro(3, settings=tiny, storage=f"{tmp_path}/others").fit(tmp_path / "photos")
    finished = DigPro(3, settings=tiny | {"name": summary["run"]}, storage=f"{tmp_path}/runs")
    of_shards = finished.fit(tmp_path / "shards")
    assert (of_photos.run_ == summary["folder"], of_shards.run_ == summary["folder"]) == (False, True)
    for model in (of_photos, of_shards):
        assert dict(zip(model.paths_, model.labels_, strict=True)) == expected
        assert (model.n_features_in_, model.n_iter_, model.cluster_centers_.shape) == (16 * 16 * 3, 2, (3, 16))
    put(tmp_path / "photos" / "new.png", saved(Image.fromarray(pixels), "PNG"))
    assert len(clone(of_photos).fit(tmp_path / "photos").labels_) == 25

    files = [(tmp_path / "photos" / path).read_bytes() for path in expected]
    pixels = torch.stack([decode(file, 16) for file in files]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(of_photos.predict(pixels), list(expected.values()))


@pytest.mark.slow
def test_arrays_get_the_clusters_of_digpro_train(tmp_path: Path) -> None:
    """And so does the folder of shards, on Ray."""
    pixels = as_images(load_digits().images[:640] / 16)
    pq.write_table(pa.table({"image": pa.array(list(_encoded(pixels)), IMAGE_TYPE)}), tmp_path / "images.parquet")
    source, exact = f"data.source={tmp_path}/images.parquet", "optim.precision=float64"
    config = load_config("digits", settings(tmp_path, *ONE_THREAD, exact, source))
    summary = train(config)
    chosen = {key: value for key, _, value in (text.partition("=") for text in [*SETTINGS, exact])}
    own = {key: yaml.safe_load(value) for key, value in chosen.items()}
    in_process = DigPro(10, settings=own).fit(pixels)
    on_ray = DigPro(10, settings=own | {"name": config.name or summary["run"], "resources.workers": 1})
    on_ray.set_params(storage=config.storage).fit(config.data.path)
    assert on_ray.run_ == summary["folder"]
    rows = [int(path.removeprefix("image ")) for path in on_ray.paths_]
    np.testing.assert_array_equal(in_process.labels_[rows], on_ray.labels_)
    np.testing.assert_array_equal(on_ray.predict(pixels), in_process.labels_)
