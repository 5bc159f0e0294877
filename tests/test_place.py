"""Addresses: what is joined to a URI goes to its path, and what must not be kept is refused."""

from __future__ import annotations

import pytest

from pipeline.errors import DataError
from pipeline.storage import Place, absolute, join, redacted, refuse_secrets

MINIO = "endpoint_override=http://minio:9000&region=us-east-1"


@pytest.mark.parametrize(
    ("place", "joined"),
    [
        ("runs", "runs/a b#1"),
        ("/mnt/runs/", "/mnt/runs/a b#1"),
        ("/", "/a b#1"),
        ("s3://bucket", "s3://bucket/a%20b%231"),
        ("s3://bucket/", "s3://bucket/a%20b%231"),
        ("s3://bucket//runs//", "s3://bucket/runs/a%20b%231"),
        (f"s3://bucket/runs?{MINIO}", f"s3://bucket/runs/a%20b%231?{MINIO}"),
        (f"s3://bucket/runs/?{MINIO}", f"s3://bucket/runs/a%20b%231?{MINIO}"),
        ("s3://bucket/my photos", "s3://bucket/my%20photos/a%20b%231"),
        ("s3://bucket/my%20photos", "s3://bucket/my%20photos/a%20b%231"),
        ("file:///mnt/100%25", "file:///mnt/100%25/a%20b%231"),
        (
            "abfs://container@account.dfs.core.windows.net/x",
            "abfs://container@account.dfs.core.windows.net/x/a%20b%231",
        ),
        ("hdfs://namenode:8020/x", "hdfs://namenode:8020/x/a%20b%231"),
    ],
)
def test_names_are_joined_to_the_path(place: str, joined: str) -> None:
    assert join(place, "a b#1") == joined
    found = Place.parse(joined)
    assert (found.name, str(found)) == ("a b#1", joined)
    assert str(found.parent) == str(Place.parse(place))


def test_the_normal_form_does_not_change() -> None:
    for place in (f"s3://bucket/my%20runs?{MINIO}", "s3://bucket/ü", "gs://anonymous@bucket/a+b=c"):
        assert absolute(absolute(place)) == absolute(place)
    assert absolute("s3://bucket/x/") == absolute("s3://bucket//x")


@pytest.mark.parametrize(
    "place",
    [
        "s3://KEY:SECRET@bucket/x",
        f"s3://KEY:SECRET@bucket/x?{MINIO}",
        "s3://KEY:SEC/RET@bucket/x",  # keys of AWS may have slashes
        "s3://KEY:SEC%2FRET@bucket/x",
        "s3://bucket/x?secret_key=SECRET",
        "abfs://container:SECRET@account.dfs.core.windows.net/x",
        "abfs://container@account.dfs.core.windows.net/x?sig=SECRET",
    ],
)
def test_a_secret_is_refused_and_not_repeated(place: str) -> None:
    with pytest.raises(DataError, match=r"holds a key or password.*AWS_SECRET_ACCESS_KEY") as raised:
        Place.parse(place)
    assert "SEC" not in str(raised.value).replace("AWS_SECRET_ACCESS_KEY", "")


@pytest.mark.parametrize("place", ["s3://bucket/a#b", "s3://bucket/100%", "s3://bucket/a%zz", f"s3://b/a#b?{MINIO}"])
def test_characters_with_two_meanings_are_refused(place: str) -> None:
    with pytest.raises(DataError, match=r"ambiguous character; write %23 for #, %3F for \? and %25 for %"):
        Place.parse(place)


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(DataError, match="the path is empty"):
        absolute("")


@pytest.mark.parametrize("given", ["imagefolder:s3://KEY:SECRET@bucket/x", "webdataset:s3://KEY:SEC/RET@b/{0..9}.tar"])
def test_a_source_holds_no_secret_either(given: str) -> None:
    with pytest.raises(DataError, match="holds a key or password"):
        refuse_secrets(given)
    refuse_secrets(f"imagefolder:s3://bucket/x?{MINIO}")


def test_user_and_password_are_shown_of_no_uri() -> None:
    assert redacted("http://me:secret@mlflow:5000/x") == "http://***@mlflow:5000/x"
    assert redacted("sqlite:///me@here/mlflow.db") == "sqlite:///me@here/mlflow.db"
