"""File and folder names that every file system accepts, made from any names of images and clusters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from pipeline.data.formats import HEAD_BYTES, image_format

BYTES = 120  # of a name without its suffix: file systems accept 255, including all that is added
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices of Windows
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
SUFFIXES = {  # by format; the first is used if a name has none of them
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "JPEG 2000": (".jp2", ".j2k", ".jpx"),
    "JPEG XL": (".jxl",),
    "AVIF": (".avif",),
    "HEIC": (".heic", ".heif"),
    "PNM": (".ppm", ".pgm", ".pbm", ".pnm"),
}


def safe_name(text: str) -> str:
    """The text as a name: forbidden characters become `_`, and very long texts are cut."""
    name = FORBIDDEN.sub("_", unicodedata.normalize("NFC", text))
    name = name.encode()[:BYTES].decode(errors="ignore").strip(" .")
    return f"_{name}" if not name or RESERVED.fullmatch(name) else name


def image_file_name(path: str, data: bytes) -> str:
    """A name for an image: the last part of its path, with a suffix that fits its format."""
    stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
    known = SUFFIXES.get(image_format(data[:HEAD_BYTES]) or "", ("",))
    if dot and stem and f".{suffix.lower()}" in known:
        return f"{safe_name(stem)}.{suffix}"
    has_other = dot and any(f".{suffix.lower()}" in some for some in SUFFIXES.values())
    return safe_name(stem if has_other else path.rpartition("/")[2]) + known[0]


class UniqueNames:
    """Unique names within a folder, also on file systems that ignore case.

    With `stems`, names are unique without their suffixes too, which some tools cut off.
    """

    def __init__(self, *, stems: bool = False) -> None:
        self.taken: set[str] = set()
        self.stems = stems

    def give(self, name: str, number: int) -> str:
        """The name; if it is taken, the name with the number, as often as it takes."""
        stem, dot, suffix = name.rpartition(".") if "." in name else (name, "", "")
        while (key := (stem if self.stems else f"{stem}{dot}{suffix}").casefold()) in self.taken:
            stem = f"{stem}~{number}"
        self.taken.add(key)
        return f"{stem}{dot}{suffix}"


def cluster_folders(num_clusters: int, names: Mapping[int, str]) -> list[str]:
    """A folder for each cluster; clusters with the same name share it."""
    digits, unique, folders = len(str(num_clusters - 1)), UniqueNames(), dict[str, str]()
    for cluster in range(num_clusters):
        unique.give(f"cluster {cluster:0{digits}}", cluster)
    for cluster, name in sorted(names.items()):
        if name not in folders:
            folders[name] = unique.give(safe_name(name), cluster)
    return [folders[names[c]] if c in names else f"cluster {c:0{digits}}" for c in range(num_clusters)]
