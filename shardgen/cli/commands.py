"""The commands by name, each with its line in the help; a command's module is imported when it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from shardgen.cli.options import Command

LINES = {
    "cut-out": "Cut out subjects: write NAME.mask.png beside photographs.",
    "init": "Write a commented shardgen.toml into RUN_DIR.",
    "plan": "Check every source, print what will be made, write the plan.",
    "preview": "Draw a contact sheet of samples from the whole run.",
    "run": "Plan if needed, make everything on this machine, merge.",
    "ray": "Plan if needed, make everything on a Ray cluster, merge.",
    "worker": "Make samples of the planned run until nothing is left.",
    "status": "Show what is stored and pending, the workers, and time left.",
    "extend": "Add the new photographs of the source folders to the plan.",
    "merge": "Assemble the final zip with labels and statistics.",
    "verify": "Read every byte again and name what is wrong.",
    "export": "Write a data set in a format for training tools.",
    "dead-letters": "List the samples that were given up, and why.",
    "requeue": "Put batches back to be made again.",
    "sweep": "List files that nothing will ever use, or remove them.",
    "backup": "Copy the manifest to another file, even while workers run.",
    "rebuild": "Rebuild a lost manifest from plan.json and the artifacts.",
    "doctor": "Check this machine for problems before you start.",
    "demo": "Try everything out on real photographs, in minutes.",
    "weights": "Fetch and check the weights of networks.",
}
"""In the order in which the help lists them; the first line of each module's own help."""


@cache
def load(name: str) -> Any:
    """What typer makes of `cli/NAME.py`: of its function, or of the `app` of one that has commands itself."""
    word = name.replace("-", "_")
    module = import_module(f"shardgen.cli.{word}")
    app = vars(module).get("app")
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name, cls=Command)(getattr(module, word))
    return typer.main.get_command(app)


class _Loaded(Mapping[str, Any]):
    """The commands by name; each is loaded when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        if name not in LINES:
            raise KeyError(name)
        return load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(LINES)

    def __len__(self) -> int:
        return len(LINES)


class Commands(TyperGroup):
    """All commands; where only their names and lines are shown, none is loaded."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands: Any = _Loaded()

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in order."""
        del ctx
        return list(LINES)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of the help."""
        with self._listed():
            super().format_commands(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """What a shell offers for the beginning of a name."""
        with self._listed():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _listed(self) -> Iterator[None]:
        loaded = self.commands
        self.commands = {name: TyperCommand(name, help=line) for name, line in LINES.items()}
        try:
            yield
        finally:
            self.commands = loaded
