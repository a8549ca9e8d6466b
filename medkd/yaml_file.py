"""YAML files that researchers write: safe, and without what a reader would silently drop."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from medkd.errors import DataError


class _Strict(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, and an alias inside what it stands for."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f'"{key.value}" stands twice', key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=True)


def _whole(loader: _Strict, node: yaml.Node) -> Any:
    """A mapping at once with all that is in it: PyYAML's own, which fills it later, lets it hold itself."""
    return loader.construct_mapping(node)


_Strict.add_constructor("tag:yaml.org,2002:map", _whole)


LARGEST = 100_000
"""Values that a file may hold, aliases written out: a few lines of aliases of aliases stand for billions."""


def _n_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in a node, those of an alias counted wherever it stands."""
    if id(node) not in known:
        known[id(node)] = 1  # inside of itself: refused when it is constructed
        inside = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] += sum(_n_values(part, known) for part in inside if isinstance(part, yaml.Node))
    return known[id(node)]


def read_yaml(path: Path, *, cure: str = "correct it") -> Any:
    """What a YAML file holds, as plain values.

    Args:
        path: of the file.
        cure: what to do about a file that cannot be read, for the error.

    Raises:
        OSError: there is no such file, or it may not be read.
        DataError: it is no text, no YAML, has a key twice in one mapping, an alias inside what it stands for, or more
            than `LARGEST` values.
    """
    try:
        loader = _Strict(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is not None and _n_values(node, {}) > LARGEST:
            raise DataError(f"{path} stands for more than {LARGEST:,} values, by aliases of aliases; write it out")
        return None if node is None else loader.construct_document(node)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text; {cure}") from error
    except yaml.MarkedYAMLError as error:
        place = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DataError(f"{path} is no readable YAML{place}: {error.problem}; {cure}") from error
    except (yaml.YAMLError, RecursionError, ValueError, KeyError) as error:  # of a date or number that is none
        raise DataError(f"{path} is no readable YAML: {error}; {cure}") from error
