"""The address of a folder or file: a local path, or a URI, whose options stay after the path."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, quote, unquote

from pipeline.errors import DataError

SEPARATOR = "://"
WITH_PORT = ("hdfs", "viewfs")  # schemes in whose URIs a colon stands before a port
SECRET_OPTIONS = ("client_secret", "sig", "access_key", "secret_key", "session_token")
HIDDEN = "//***@"  # replaces a user and password
KEPT = "/!$&'()*+,;=:@~"  # besides letters, digits and -._, characters that a URI's path may have unquoted


@dataclass(frozen=True)
class Place:
    """A local path or a URI; names are joined to its path: ``s3://bucket/runs?region=x`` / ``"digits"``.

    In a URI ``%20`` is a space, ``%23`` a ``#``, ``%3F`` a ``?`` and ``%25`` a ``%``, everywhere in this project.

    Attributes
    ----------
    scheme : str
        Empty for a local path.
    path : str
        Unquoted, without a slash at its end; in an object store it begins with the bucket.
    options : str
        What follows the ``?``.
    """

    scheme: str
    path: str
    options: str = ""

    @classmethod
    def parse(cls, text: str) -> Place:
        """The place that a text names.

        Raises
        ------
        DataError
            For an empty text, and a URI that holds a secret or ambiguous characters.
        """
        if not text:
            raise DataError("the path is empty; give a folder, a file or a URI")
        if SEPARATOR not in text:
            return cls("", text.rstrip("/") or "/")
        scheme, _, rest = text.partition(SEPARATOR)
        path, _, options = rest.partition("?")
        _refuse_secrets(scheme, path, options)
        if "#" in rest or re.search("%(?![0-9A-Fa-f]{2})", path):
            raise DataError(f"{text} has an ambiguous character; write %23 for #, %3F for ? and %25 for %")
        return cls(scheme, re.sub("//+", "/", unquote(path, errors="surrogateescape")).rstrip("/") or "/", options)

    def __str__(self) -> str:
        if not self.scheme:
            return self.path
        options = f"?{self.options}" if self.options else ""
        return f"{self.scheme}{SEPARATOR}{quote(self.path, safe=KEPT, errors='surrogateescape')}{options}"

    def __truediv__(self, name: str) -> Place:
        return replace(self, path=f"{self.path.rstrip('/')}/{name}" if self.path else name)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Place:
        """The folder above."""
        above, slash, _ = self.path.rpartition("/")
        return replace(self, path=above or slash)

    @property
    def values(self) -> dict[str, str]:
        """The options by name."""
        return dict(parse_qsl(self.options, keep_blank_values=True))


def _refuse_secrets(scheme: str, path: str, options: str) -> None:
    """DataError, which does not repeat the secret, for a URI with a password or key: URIs are stored and shown."""
    authority = path.partition("/")[0]
    has_port = scheme in WITH_PORT and re.fullmatch(r"[^:@]+:\d+", authority)
    if (":" in authority and not has_port) or any(name in SECRET_OPTIONS for name, _ in parse_qsl(options)):
        raise DataError(
            f"a URI of {scheme}{SEPARATOR} holds a key or password, but URIs are stored and shown; set it in the "
            "environment of every node instead (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for S3)"
        )


def refuse_secrets(text: str) -> None:
    """DataError where the URI in a text, such as ``imagefolder:s3://KEY:SECRET@bucket``, holds a secret."""
    if found := re.search(r"(\w+)://([^?]*)\??(.*)", text, re.DOTALL):
        _refuse_secrets(*found.groups())


def redacted(text: str) -> str:
    """`text` without the user and password of any URI in it."""
    return re.sub(r"(?<!/)//[^/\s]*@", HIDDEN, text)


def join(place: str, *names: str) -> str:
    """The path or URI of what lies below a folder; options of a URI stay at its end."""
    found = Place.parse(place)
    for name in names:
        found /= name
    return str(found)


def absolute(path: str) -> str:
    """A path that means the same in every process: local ones from the root, URIs in their normal form."""
    place = Place.parse(path)
    return str(place) if place.scheme else os.path.abspath(os.path.expanduser(path))
