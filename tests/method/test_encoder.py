"""Encoders and heads: sizes, stems, initial weights, unknown names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.method.encoder import build_encoder, build_head, build_predictor


@pytest.mark.parametrize(("name", "size"), [("tiny", 128), ("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
@pytest.mark.parametrize("small_stem", [False, True])
def test_an_encoder_makes_vectors_of_its_size(name: str, size: int, small_stem: bool) -> None:
    encoder, found = build_encoder(name, small_stem=small_stem)
    assert found == size
    with torch.device("meta"):
        assert encoder.to("meta")(torch.empty(2, 3, 32, 32)).shape == (2, size)


def test_the_small_stem_keeps_the_resolution() -> None:
    """torchvision's stem shrinks 32 pixels to 8 before the first block; of small images nothing would be left."""
    for small_stem, side in ((False, 8), (True, 32)):
        resnet, _ = build_encoder("resnet18", small_stem=small_stem)
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(torch.zeros(1, 3, 32, 32)))))
        assert x.shape == (1, 64, side, side)


def test_an_unknown_name_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'resnet19' \(known: tiny, resnet18, .*\); did you mean 'resnet18'\?"):
        build_encoder("resnet19")


def test_a_head_is_linear_norm_relu_linear() -> None:
    head = build_head(5, 7, 3)
    assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert head(torch.randn(4, 5)).shape == (4, 3)


def test_the_predictor_starts_near_zero() -> None:
    predictor = build_predictor(64, 256)
    for layer in (predictor[0], predictor[3]):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not layer.bias.any()
    assert predictor(torch.randn(8, 64)).shape == (8, 64)
