"""Names that people give to the clusters of a run: kept in its folder, used wherever clusters are shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

import yaml

from pipeline.errors import ConfigError, first_line
from pipeline.inference.card import TRAINING_CLUSTERS
from pipeline.progress import Echo
from pipeline.runs.identity import CLUSTERS_REMEDY
from pipeline.storage import Folder, absolute, filesystem

NAMES = "names.yaml"
FILE_SUFFIXES = (".yaml", ".yml", ".json")
_NUMBER = re.compile(r"[0-9]+")
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
_NO_NAME = ("", "~", "null")  # what YAML reads as no value, unless quoted


def read_names(run: Folder) -> dict[int, str]:
    """Names by the number of the cluster; ConfigError when the file is damaged."""
    return _parse_file(run.file(NAMES)) if NAMES in run.names(NAMES) else {}


def copy_names(source: Folder, target: Folder) -> None:
    """Give the clusters of a run the names that those of another have."""
    if NAMES in source.names(NAMES):
        target.write_bytes(NAMES, source.read_bytes(NAMES))


def set_names(run: str, given: Sequence[str], echo: Echo = print) -> dict[int, str]:
    """Set names of clusters of a finished run, and keep the others; returns all names.

    Parameters
    ----------
    run : str
        Folder of the run.
    given : sequence of str
        ``CLUSTER=NAME``, where an empty name removes the name, or YAML files of ``cluster: name``.
    echo : callable
        Takes a line for each name, for each name that is removed, and for clusters that share a name.

    Raises
    ------
    ConfigError
        For a cluster that does not exist or is named twice, a malformed argument or file, or a run that is not
        finished.
    """
    folder = Folder(absolute(run))
    count = count_clusters(folder)
    changes = _read_arguments(given)
    if unknown := [cluster for cluster in changes if cluster >= count]:
        raise ConfigError(f"cluster {unknown[0]} does not exist; {folder.name} has clusters 0 to {count - 1}")
    before = read_names(folder)
    names = {cluster: name for cluster, name in sorted((before | changes).items()) if name}
    data = yaml.safe_dump(names, allow_unicode=True, sort_keys=False, width=float("inf")).encode()
    folder.write_bytes(NAMES, data)
    for line in _describe(names, before):
        echo(line)
    return names


def count_clusters(run: Folder) -> int:
    """K of a finished run; ConfigError when it is not finished, or the file is damaged."""
    clusters = run.read(TRAINING_CLUSTERS)
    if clusters is None:
        raise ConfigError(f"{run.path} holds no finished run; give the folder of one, with its {TRAINING_CLUSTERS}")
    if not isinstance(sizes := clusters.get("sizes"), list):
        raise ConfigError(f"{run.file(TRAINING_CLUSTERS)} is damaged (sizes: {sizes!r}); {CLUSTERS_REMEDY}")
    return len(sizes)


def _describe(names: Mapping[int, str], before: Mapping[int, str]) -> Iterator[str]:
    for cluster, name in names.items():
        yield f"{cluster:>4}  {name}"
    for cluster in sorted(before.keys() - names.keys()):
        yield f"{cluster:>4}  is no longer named {before[cluster]}"
    by_name: dict[str, list[int]] = {}
    for cluster, name in names.items():
        by_name.setdefault(name, []).append(cluster)
    for name, clusters in by_name.items():
        if len(clusters) > 1:
            yield f"clusters {', '.join(map(str, clusters))} are named {name} and count as one"


def _read_arguments(given: Sequence[str]) -> dict[int, str]:
    """The names of all arguments together; an empty one removes the name."""
    names: dict[int, str] = {}
    for argument in given:
        found = _parse_file(argument) if _is_file(argument) else _parse_pair(argument)
        if twice := sorted(names.keys() & found.keys()):
            first, second = names[twice[0]], found[twice[0]]
            raise ConfigError(f"cluster {twice[0]} is named twice, {first!r} and {second!r}; name it once")
        names |= found
    return names


def _is_file(argument: str) -> bool:
    """Whether an argument is a file of names; its path may hold a `=`."""
    number, equals, _ = argument.partition("=")
    if not equals:
        return True
    if _NUMBER.fullmatch(number.strip()):
        return argument.endswith(FILE_SUFFIXES) and os.path.exists(argument)
    return "/" in argument or argument.endswith(FILE_SUFFIXES)


def _parse_pair(argument: str) -> dict[int, str]:
    cluster, _, name = argument.partition("=")
    if not _NUMBER.fullmatch(cluster.strip()):
        raise ConfigError(
            f"{argument!r} does not start with the number of a cluster; write it as in 3=truck, or give a YAML file"
        )
    return {int(cluster): _checked(name, f"{argument!r}")}


def _checked(name: str, where: str) -> str:
    """A name without the spaces around it; ConfigError where it is more than one line of text."""
    name = name.strip()
    if _CONTROL.search(name):
        raise ConfigError(f"{where}: the name {name!r} has line breaks or control characters; give one line of text")
    return name


def _parse_file(path: str) -> dict[int, str]:
    """Names by cluster, as literal text: YAML would read `no` as False and 007 as 7."""
    files, inner = filesystem(path)
    try:
        with files.open_input_file(inner) as file:
            top = yaml.compose(file.read(), Loader=yaml.BaseLoader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); give CLUSTER=NAME, or a YAML file of such lines") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML ({_in_one_line(error)}); write lines such as `3: truck`") from None
    if not isinstance(top, yaml.MappingNode):
        found = "nothing" if top is None else f"{_shown(top)} in line {top.start_mark.line + 1}"
        raise ConfigError(f"{path} holds {found}; write lines such as `3: truck`")
    return _parse_pairs(top, path)


def _parse_pairs(top: yaml.MappingNode, path: str) -> dict[int, str]:
    names: dict[int, str] = {}
    for key, value in top.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or not _NUMBER.fullmatch(key.value):
            raise ConfigError(f"{where}: {_shown(key)} is not the number of a cluster; write lines such as `3: truck`")
        if int(key.value) in names:
            raise ConfigError(f"{where}: cluster {int(key.value)} is named a second time; name it once")
        names[int(key.value)] = _name(value, where)
    return names


def _name(node: yaml.Node, where: str) -> str:
    """The text of a name; empty where there is none."""
    if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith(":str"):  # a `!` begins a tag of YAML
        raise ConfigError(
            f"{where}: {_shown(node)} is not a name; write a text, in quotes if it has special characters of YAML"
        )
    if node.style is None and node.value in _NO_NAME:
        return ""
    return _checked(node.value, where)


def _shown(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
    return repr(node.value) if node.tag.endswith(":str") else repr(f"{node.tag} {node.value}".strip())


def _in_one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return first_line(error)
    return f"line {mark.line + 1}: {getattr(error, 'problem', None) or first_line(error)}"
