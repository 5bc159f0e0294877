"""Detects the type of a file from its first bytes, never from its name: suffixes are wrong too often."""

from __future__ import annotations

import re

HEAD_BYTES = 512
"""Bytes of a file that `image_format` and `describe` need: DICOM's mark is at 128, an SVG may start with comments."""

_SIGNATURES = (  # (offset, bytes, name of an image format)
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WebP"),
    (8, b"CR", "CR2"),  # starts like a TIFF, so it is tested before TIFF
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),  # BigTIFF
    (0, b"MM\0+", "TIFF"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),  # a bare codestream
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "PSD"),
    (0, b"DDS ", "DDS"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"FUJIFILMCCD-RAW", "RAF"),
    (0, b"IIRO", "ORF"),
    (0, b"IIRS", "ORF"),
    (0, b"IIU\0", "RW2"),
    (128, b"DICM", "DICOM"),
)
_CONTAINERS = {b"RIFF": b"WEBP", b"II*\0": b"CR"}  # what must be at 0 for a mark at 8 to count
_BRANDS = {  # of the ISO container, in order of precedence
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"},
    "CR3": {b"crx "},
}
_BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}  # lengths that the second header of a BMP may have
_PNM = re.compile(rb"P[1-6fF]\s+(#[^\n]*\n\s*)*\d+\s|P7\nWIDTH")
_NOT_IMAGES = (
    (b"version https://git-lfs", "Git LFS pointer instead of the file; run `git lfs pull`"),
    (b"\x93NUMPY", "NumPy array; save it as TIFF"),
    (b"%PDF", "PDF document; convert its pages to PNG"),
    (b"PK\x03\x04", "ZIP archive; unpack it"),
    (b"\x1f\x8b", "gzip archive; unpack it"),
    (b"\x89HDF", "HDF5 file; save its images as TIFF"),
    (b"CDF", "NetCDF file; save its images as TIFF"),
    (b"ZISRAWFILE", "CZI microscope file; export its images as TIFF"),
    (b"PAR1", "Parquet file; ingest it as parquet:PATH"),
)


def image_format(head: bytes) -> str | None:
    """The name of the image format, from the first `HEAD_BYTES` of a file, or None if it is not an image.

    A name does not mean that the format can be read (DICOM, SVG), only that the file is meant to be an image.
    """
    for offset, mark, name in _SIGNATURES:
        if head.startswith(mark, offset) and (offset != 8 or _CONTAINERS.get(head[:4]) == mark):
            return name
    if head[4:8] == b"ftyp":
        return _iso_format(head)
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if _PNM.match(head):
        return "PNM"
    return "SVG" if _is_svg(head) else None


def _iso_format(head: bytes) -> str | None:
    """AVIF, HEIC or CR3 by the brands in the first box; None for videos."""
    box = head[8 : int.from_bytes(head[:4], "big")]
    brands = {box[i : i + 4] for i in range(0, len(box), 4)}
    return next((name for name, known in _BRANDS.items() if brands & known), None)


def _is_svg(head: bytes) -> bool:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!doctype svg", b"<!--")) and b"<svg" in text)


def describe(head: bytes) -> str:
    """Describe a file that is not an image, with the remedy if there is one."""
    if not head:
        return "empty file; fetch it again"
    for mark, words in _NOT_IMAGES:
        if head.startswith(mark):
            return words
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "HTML page, perhaps the error page of a download; fetch the file again"
    if head[4:8] == b"ftyp":
        return "video; extract its frames as images"
    if not any(head):
        return f"only zero bytes in its first {len(head)}; fetch it again"
    if not re.search(rb"[\x00-\x08\x0e-\x1f\x7f]", head):
        return f"text that starts with {head[:20].decode(errors='replace')!r}, not an image"
    return f"unknown content that starts with the bytes {head[:8].hex(' ')}"
