"""Networks of libraries: names, weights, what they expect of images, and what goes wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import nn

from pipeline.backbones.backbone import feature_size, without_dropout
from pipeline.backbones.libraries import library_input, open_backbone
from pipeline.backbones.weights import digest
from pipeline.data.decode import decode
from pipeline.data.pixels import png
from pipeline.data.preprocess import Preprocess
from pipeline.errors import ConfigError

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
HERE = "python:tests.helpers.backbones"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and nothing downloaded before."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def saved(state: dict[str, torch.Tensor], path: Path) -> str:
    """The state dict in a file of the kind that its name says."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 512), ("efficientnet_b0", 1280), ("convnext_tiny", 768), ("mobilenet_v3_small", 1024)],
)
def test_the_classifier_is_taken_off(name: str, size: int) -> None:
    backbone = open_backbone(f"torchvision:{name}", None)
    assert feature_size(backbone.module, 64, name) == size
    assert backbone.input is None  # untrained: the images are normalised by their own statistics


@pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
def test_weights_come_from_a_file_and_the_classifier_does_not_matter(tmp_path: Path, file: str) -> None:
    trained = torchvision.models.resnet18(num_classes=7).eval()
    path = saved(trained.state_dict(), tmp_path / file)
    backbone = open_backbone("torchvision:resnet18", path)
    trained.fc = nn.Identity()
    assert backbone.module.eval()(IMAGES).equal(trained(IMAGES))
    assert backbone.input is not None
    assert backbone.input.size == 224


def test_timm_loads_the_same_weights(tmp_path: Path) -> None:
    import timm

    trained = timm.create_model("resnet10t", num_classes=5).eval()
    path = saved(trained.state_dict(), tmp_path / "w.safetensors")
    backbone = open_backbone("timm:resnet10t", path)
    assert backbone.module.eval()(IMAGES).equal(trained.forward_head(trained.forward_features(IMAGES), pre_logits=True))
    assert backbone.input is not None
    assert backbone.input.interpolation == "bicubic"


def test_a_transformer_is_built_for_the_size_of_the_images(tmp_path: Path) -> None:
    import timm

    name = "vit_tiny_patch16_224"
    path = saved(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    backbone = open_backbone(f"timm:{name}", path, size=64)
    assert feature_size(backbone.module, 64, name) == 192


def test_names_that_do_not_fit_are_named_and_refused_unless_allowed(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    state["extra.weight"] = state.pop("layer1.0.conv1.weight")
    path = saved(state, tmp_path / "w.pth")
    wanted = r"1 missing: layer1\.0\.conv1\.weight; 1 unexpected: extra\.weight\).*model.partial_weights=true"
    with pytest.raises(ConfigError, match=wanted):
        open_backbone("torchvision:resnet18", path)
    open_backbone("torchvision:resnet18", path, partial=True)


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_another_network_and_other_shapes_are_always_refused(tmp_path: Path, partial: bool, library: str) -> None:
    other = saved({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"has nothing of the network: it needs bn1.bias, .* and the file has a"):
        open_backbone(f"{library}:resnet18", other, partial=partial)
    wide = saved(torchvision.models.wide_resnet50_2().state_dict(), tmp_path / "wide.safetensors")
    with pytest.raises(ConfigError, match="of another shape: layer1"):
        open_backbone(f"{library}:resnet50", wide, partial=partial)


@pytest.mark.parametrize("content", [b"no weights", b""])
@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_a_file_that_holds_no_state_dict_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=f"model.weights={tmp_path}/{file} cannot be read"):
        open_backbone("torchvision:resnet18", str(tmp_path / file))


def test_weights_run_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path(tmp_path, "ran").touch, ())

    torch.save(Trap(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="cannot be read"):
        open_backbone("torchvision:resnet18", str(tmp_path / "w.pth"))
    assert not (tmp_path / "ran").exists()


def test_a_whole_module_instead_of_its_state_is_refused(tmp_path: Path) -> None:
    torch.save({"lr": 0.1}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"holds no state dict .* save model.state_dict\(\)"):
        open_backbone("torchvision:resnet18", str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet81", r"unknown to torchvision; did you mean 'resnet18'\?"),
        ("timm:resnet1x", r"unknown to timm .*; did you mean 'resnet"),
        ("python:tests.nowhere:make", "cannot be imported .* importable on every node"),
        ("python:tests.helpers.backbones:nothing", "cannot be imported"),
        (f"{HERE}:not_a_module", "returned int; return a torch.nn.Module"),
    ],
)
def test_unknown_names_are_explained(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_backbone(name, None)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("torchvision:resnet18", r"https?://\S+/resnet18-\w+\.pth"),
        ("timm:resnet18", "model.safetensors of timm/resnet18"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_without_a_network_the_file_to_fetch_is_named(name: str, file: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot be downloaded.*fetch {file}.*set model.weights to the file's path"):
        open_backbone(name, "default")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"`pip install -c constraints.txt -e '.\[timm\]'`"):
        open_backbone("timm:resnet18", None)


def test_a_function_may_return_a_module_or_a_backbone() -> None:
    assert open_backbone(f"{HERE}:network", None).input is None
    backbone = open_backbone(f"{HERE}:with_input", None)
    assert backbone.input is not None
    assert backbone.input.size == 16
    with pytest.raises(ConfigError, match="whose function gives the weights"):
        open_backbone(f"{HERE}:network", "default")


def test_what_is_no_vector_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"returns shape \(2, 4, 14, 14\) for images \(2, 3, 16, 16\)"):
        feature_size(open_backbone(f"{HERE}:maps", None).module, 16, f"{HERE}:maps")


def test_images_that_are_too_small_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"cannot take images of 4 pixels .* set views.size"):
        feature_size(torchvision.models.alexnet(), 4, "torchvision:alexnet")


def test_nothing_is_drawn_in_training() -> None:
    """Dropout and stochastic depth would differ between workers, and after a resume."""
    module = without_dropout(torchvision.models.efficientnet_b0().train())
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    assert module(IMAGES).equal(module(IMAGES))


def test_the_digest_is_of_the_values(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    safe = saved(state, tmp_path / "w.safetensors")
    pickled = saved(state, tmp_path / "w.pth")
    one, two = (digest(open_backbone("torchvision:resnet18", path).module.state_dict()) for path in (safe, pickled))
    assert one == two
    state["bn1.bias"][0] += 1
    assert digest(open_backbone("torchvision:resnet18", saved(state, tmp_path / "x.pth")).module.state_dict()) != one


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (97, 531), (40, 40)])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_images_are_prepared_as_the_library_does(name: str, width: int, height: int) -> None:
    """Up to the rounding of the resized image to 8 bits, and of its sides."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    smooth = Image.fromarray(pixels).resize((width // 8, height // 8)).resize((width, height))
    own = library_input(f"torchvision:{name}", "default")
    assert own is not None
    side = round(own.size / own.crop)
    image = decode(png(smooth), side, "crop", own.interpolation).permute(1, 2, 0)
    found = Preprocess(own.size, own.mean, own.std, crop=True)(image[None])[0]
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    expected = transform(torch.from_numpy(np.array(smooth)).permute(2, 0, 1))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 2.5 / 255 / min(own.std)


def test_efficientnet_lite_works_without_a_network() -> None:
    backbone = open_backbone("python:pipeline.backbones.efficientnet_lite:efficientnet_lite0", None)
    assert backbone.input is not None
    assert feature_size(backbone.module, 64, "lite") == 1280
