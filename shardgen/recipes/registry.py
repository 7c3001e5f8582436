"""All kinds of recipes; those of this package are imported when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from shardgen.domain.plan import Plan
from shardgen.domain.wording import nearest
from shardgen.errors import InvalidSettings
from shardgen.recipes.base import Beside, Preset, Recipe, RecipeKind

DEFAULT = "composites"
DEFAULT_PRESET = "grid600"


@cache
def _composites() -> RecipeKind:
    from shardgen.recipes.composites.kind import Composites

    return Composites()


@cache
def _pictures() -> RecipeKind:
    from shardgen.recipes.pictures.kind import Pictures

    return Pictures()


_OURS: dict[str, Callable[[], RecipeKind]] = {DEFAULT: _composites, "depth": _pictures}
_KINDS: dict[str, RecipeKind] = {}
"""Those of others."""


def register(kind: RecipeKind) -> None:
    """Make a kind known to this process."""
    _KINDS[kind.name] = kind


def find_kind(name: str) -> RecipeKind:
    """The kind that `[recipe] kind` names. Raises InvalidSettings."""
    if name in _OURS:
        return _OURS[name]()
    if name not in _KINDS:
        known = [*_OURS, *_KINDS]
        meant = nearest(name, known)
        hint = f'did you mean "{meant}"?' if meant else "kind = " + " or ".join(f'"{one}"' for one in known)
        raise InvalidSettings(f"[recipe] kind: {name!r} is not known", hint=hint)
    return _KINDS[name]


def kinds() -> list[RecipeKind]:
    """All of them."""
    return [*(make() for make in _OURS.values()), *_KINDS.values()]


def presets() -> dict[str, tuple[RecipeKind, Preset]]:
    """What `init --preset` knows, by name."""
    return {name: (kind, preset) for kind in kinds() for name, preset in kind.presets.items()}


def find_preset(name: str) -> tuple[RecipeKind, Preset]:
    """A preset and its kind. Raises InvalidSettings."""
    known = presets()
    if name not in known:
        meant = nearest(name, known)
        hint = f"did you mean --preset {meant}?" if meant else f"--preset {' or '.join(known)}"
        raise InvalidSettings(f"--preset: {name!r} is not known", hint=hint)
    return known[name]


def recipe_of(plan: Plan, *, beside: Beside | None = None) -> Recipe:
    """The recipe of a plan; without `beside` nothing can be asked of it that a file of the plan must tell."""
    return find_kind(plan.recipe.kind).recipe(plan, beside)
