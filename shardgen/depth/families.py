"""The families of depth networks that there are."""

from __future__ import annotations

from shardgen.depth.base import Family
from shardgen.depth.densedepth.family import DenseDepth
from shardgen.errors import InvalidSettings

DEFAULT = DenseDepth()
_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Make a family known to this process."""
    _FAMILIES[family.name] = family


def family_names() -> tuple[str, ...]:
    """What `[depth] model` may be."""
    return tuple(_FAMILIES)


def unknown_family(name: str) -> str | None:
    """What a name of a family must be instead; None for one that is known."""
    return None if name in _FAMILIES else f"must be {' or '.join(map(repr, _FAMILIES))}"


def find_family(name: str) -> Family:
    """The family that `[depth] model` names. Raises InvalidSettings."""
    if problem := unknown_family(name):
        raise InvalidSettings(
            f"[depth] model: {problem} (found {name!r})", hint=f'model = "{DEFAULT.name}", or a newer version'
        )
    return _FAMILIES[name]


register(DEFAULT)
