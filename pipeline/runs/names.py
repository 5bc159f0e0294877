"""Names that people give to the clusters of a run: kept in its folder, used wherever clusters are shown."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from pipeline.errors import ConfigError, first_line
from pipeline.inference.card import TRAINING_CLUSTERS
from pipeline.storage import Folder, absolute, filesystem

NAMES = "names.yaml"


def read_names(run: Folder) -> dict[int, str]:
    """Names by the number of the cluster; ConfigError when the file is damaged."""
    return _parse_file(f"{run.path}/{NAMES}") if NAMES in run.names(NAMES) else {}


def set_names(run: str, given: Sequence[str]) -> dict[int, str]:
    """Name clusters of a finished run, beside the names they have; returns the names of all that have one.

    Parameters
    ----------
    run : str
        Folder of the run.
    given : sequence of str
        ``CLUSTER=NAME``, where an empty name takes the name away, or YAML files of ``cluster: name``.

    Raises
    ------
    ConfigError
        For a cluster that does not exist, a malformed argument or file, or a run that is not finished.
    """
    folder = Folder(absolute(run))
    clusters = folder.read(TRAINING_CLUSTERS)
    if clusters is None:
        raise ConfigError(
            f"{folder.path} holds no finished run; give the folder that has the {TRAINING_CLUSTERS} of one"
        )
    names = read_names(folder)
    for argument in given:
        names |= _parse_pair(argument) if "=" in argument else _parse_file(argument)
    count = len(clusters["sizes"])
    if unknown := [cluster for cluster in names if not 0 <= cluster < count]:
        raise ConfigError(f"cluster {unknown[0]} does not exist; {folder.name} has the clusters 0 to {count - 1}")
    names = {cluster: names[cluster] for cluster in sorted(names) if names[cluster]}
    data = yaml.safe_dump(names, allow_unicode=True, sort_keys=False).encode()
    folder.write_bytes(NAMES, data)
    return names


def _parse_pair(argument: str) -> dict[int, str]:
    cluster, _, name = argument.partition("=")
    if not cluster.strip().isdecimal():
        raise ConfigError(f"{argument!r} names no cluster; give its number, as in 3=truck, or a YAML file")
    return {int(cluster): name.strip()}


def _parse_file(path: str) -> dict[int, str]:
    files, inner = filesystem(path)
    try:
        with files.open_input_file(inner) as file:
            values = yaml.safe_load(file.read())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); give CLUSTER=NAME, or a YAML file of such lines") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML ({first_line(error)}); write lines such as `3: truck`") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {values!r}; write lines such as `3: truck`")
    if wrong := [key for key in values if not isinstance(key, int) or isinstance(key, bool)]:
        raise ConfigError(f"{path} names {wrong[0]!r}, which is no number of a cluster; write lines such as `3: truck`")
    return {cluster: str(name or "").strip() for cluster, name in values.items()}
