"""What a file is by its first bytes."""

from __future__ import annotations

import pytest

from pipeline.data.formats import HEAD_BYTES, describe, image_format
from tests.helpers.images import encoded

HEIC = (24).to_bytes(4, "big") + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(64)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, kind) for kind in ("JPEG", "PNG", "TIFF", "GIF", "BMP", "ICO", "AVIF", "DDS")),
        ("WEBP", "WebP"),
        ("JPEG2000", "JPEG 2000"),
        ("PPM", "PNM"),
    ],
)
def test_formats_that_pillow_writes_are_known(kind: str, name: str) -> None:
    assert image_format(encoded(kind=kind)[:HEAD_BYTES]) == name


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"II+\0\x08\0\0\0", "TIFF"),
        (b"MM\0+\0\x08\0\0", "TIFF"),
        (b"II*\0\x10\0\0\0CR\x02\0", "CR2"),
        (HEIC, "HEIC"),
        ((24).to_bytes(4, "big") + b"ftypmif1" + bytes(4) + b"mif1avif", "AVIF"),
        (bytes.fromhex("0000000c4a584c200d0a870a") + bytes(32), "JPEG XL"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"P5\n# GIMP\n640 480\n255\n", "PNM"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- by hand -->\n<svg xmlns='x'/>", "SVG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (bytes(128) + b"DICM", "DICOM"),
    ],
)
def test_other_image_formats_are_known(head: bytes, name: str) -> None:
    assert image_format(head) == name


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><svg></svg>", "HTML page"),
        (b"\x93NUMPY\x01\0", "NumPy array"),
        ((24).to_bytes(4, "big") + b"ftypisom" + bytes(4) + b"mp42", "video"),
        (b"BMW and others", "text that starts with 'BMW and others'"),
        (b"P5 is a prime", "text"),
        (b"a,b\n", "text"),
        (b"RIFF\0\0\0\0WAVE", "52 49 46 46"),
        (b"\x12\x34" * 8, "bytes 12 34"),
        (bytes(100), "zero bytes"),
    ],
)
def test_what_is_not_an_image_is_said_in_words(head: bytes, words: str) -> None:
    assert image_format(head) is None
    assert words in describe(head)
