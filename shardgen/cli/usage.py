"""Misuse of the command line, in our words: what is wrong, and what was probably meant."""

from __future__ import annotations

import re
import sys
from typing import Any

import typer

from shardgen.cli.commands import LINES
from shardgen.domain.wording import nearest
from shardgen.errors import ShardgenError

MISUSE: type[Exception] = typer.BadParameter.__bases__[0]
"""The class that misuse has, in typer's own copy of click and in click itself."""
_MAX_SHOWN = 100  # characters of a typed value
# Of typer, and of pydantic below it; what is not listed is shown as it is.
_WORDS = (
    (r"Input should be a valid integer.*", "must be a whole number"),
    (r"Input should be a valid number.*", "must be a number"),
    (r"Input should be greater than or equal to (\S+)", r"must be at least \1"),
    (r"Input should be less than or equal to (\S+)", r"must be at most \1"),
    (r"Missing (?:argument|option|parameter) '([^']+)'\.?", r"\1 is missing"),
    (r"Option '([^']+)' requires an argument\.?", r"\1 needs a value"),
    (r"Option '([^']+)' does not take a value\.?", r"\1 takes no value"),
    (r"Got unexpected extra arguments? ?(?:\(s\) )?\((.*)\)", r"too many arguments: \1"),
    (r"No such (command|option):? '?([^' ]+?)'?\.?", r"no such \1: \2"),
)


class UsageError(ShardgenError):
    """The command line was typed wrongly; nothing was done."""

    exit_code = 2


def usage_error(misuse: Exception) -> UsageError:
    """What typer says of it, with the command's help as the hint."""
    context = getattr(misuse, "ctx", None)
    command = context.command_path if context is not None else _command_typed()
    parameter = getattr(misuse, "param", None)
    subject = getattr(misuse, "param_hint", None) or _named(parameter)
    problem = _reworded(str(getattr(misuse, "message", "")) or _formatted(misuse))
    value = _typed_value(parameter)
    message = problem
    if type(misuse) is typer.BadParameter and subject:
        message = f"{subject} {problem}" if problem.startswith("must ") else f"{subject}: {problem}"
    if value and repr(value) not in message and value not in re.split(r"[\s,'\"]+", message):
        message = f"{message} (typed: {value})"
    meant = _meant(problem, context)
    hint = f"{command} --help"
    return UsageError(message, hint=f"did you mean {meant}? Otherwise see: {hint}" if meant else hint)


def _named(parameter: object) -> str:
    """An option as it is typed; an argument in capitals, as in helps (RUN_DIR)."""
    names = "/".join(getattr(parameter, "opts", ()))
    return names if names.startswith("-") else names.upper()


def _formatted(misuse: Exception) -> str:
    return str(misuse.format_message()) if hasattr(misuse, "format_message") else str(misuse)


def _reworded(message: str) -> str:
    for theirs, ours in _WORDS:
        if found := re.fullmatch(theirs, message.partition(". Did you mean")[0]):
            return found.expand(ours)
    return message


def _meant(problem: str, context: Any) -> str:
    """The command or option that is most like the one that is not there."""
    kind, _, name = problem.removeprefix("no such ").partition(": ")
    if context is None or kind == problem or not name:
        return ""
    if kind == "command":
        return nearest(name, context.command.list_commands(context))
    options = (flag for one in context.command.get_params(context) for flag in one.opts)
    flags: dict[str, str] = {flag.removeprefix("--"): flag for flag in options if flag.startswith("--")}
    return flags.get(nearest(name.removeprefix("--").replace("_", "-"), flags), "")


def _command_typed() -> str:
    """The command that the line names, for an error that comes before anybody has read so far."""
    named = sys.argv[1] if len(sys.argv) > 1 else ""
    return f"shardgen {named}" if named in LINES else "shardgen"


def _typed_value(parameter: object) -> str:
    """What the command line gives to an option; a flag has no value."""
    if getattr(parameter, "is_flag", False):
        return ""
    words = [piece for word in sys.argv for piece in (word.split("=", 1) if word[:2] == "--" else [word])]
    named = [index for index, word in enumerate(words[:-1]) if word in getattr(parameter, "opts", ())]
    return words[named[-1] + 1][:_MAX_SHOWN] if named else ""
