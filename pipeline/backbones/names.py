"""The names of networks, our own and those of libraries. Light to import, for the configuration."""

from __future__ import annotations

import re

OWN = ("tiny", "resnet18", "resnet34", "resnet50")
LIBRARIES = ("torchvision", "timm", "python")
DEFAULT = "default"  # as `model.weights`: the library's own
_LIBRARY_NAME = re.compile(rf"({'|'.join(LIBRARIES)}):(\S+)")


def is_library_name(name: str) -> bool:
    """Whether an encoder comes from a library and is not one of our own."""
    return _LIBRARY_NAME.fullmatch(name) is not None


def split_name(name: str) -> tuple[str, str]:
    """Split `LIBRARY:NAME` into the library and the name within it."""
    match = _LIBRARY_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not of the form LIBRARY:NAME, where LIBRARY is one of {', '.join(LIBRARIES)}")
    return match[1], match[2]
