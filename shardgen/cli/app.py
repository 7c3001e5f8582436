"""The `shardgen` command: its commands, and what an error prints and exits with."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from shardgen import __version__
from shardgen.cli.commands import LINES, Commands
from shardgen.cli.printable import Outlet, open_outlets
from shardgen.cli.render import one_line, remark_text, say
from shardgen.domain.wording import counted
from shardgen.errors import ShardgenError, Stopped, StorageFailed
from shardgen.worker.stop import StopSignals, stopping_signals

# The class that command-line misuse has, in typer's own copy of click and in click itself.
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="shardgen",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make large image data sets (composites, masks, depth maps) on machines that come and go, without "
    "losing one sample.",
    epilog="Start with `shardgen demo`; then cut-out, init, plan, preview, run. If something stopped, run "
    "the same command again.",
)
_SHOWN_REMARKS = 20


def _version(is_wanted: bool) -> None:  # noqa: FBT001 - typer calls it
    if is_wanted:
        typer.echo(f"shardgen {__version__}")
        raise typer.Exit


@app.callback()
def _shardgen(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version),
    ] = False,
) -> None:
    del version


def main() -> None:
    """Run the command line; every deliberate error becomes `error:` and `hint:` lines and an exit code."""
    # pydantic would look for plugins in all installed packages.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    outlet = open_outlets()
    _show_what_is_logged()
    try:
        with _ending_by_signals():
            code = app(standalone_mode=False, prog_name="shardgen")
    except USAGE_ERROR as error:
        code = _usage(error)
    except ShardgenError as error:
        code = _deliberate(error)
    except Stopped as stopped:
        say("stopped; run the same command again to continue")
        code = 128 + stopped.number
    except (KeyboardInterrupt, typer.Abort):
        say("stopped")
        code = 130
    except _EndedBySignal as ended:
        say("stopped")
        code = ended.exit_code
    except Exception:  # noqa: BLE001 - the last door: an unknown error is a bug and shows its traceback
        say(traceback.format_exc().rstrip())
        say("error: this is a bug in shardgen; nothing recorded is lost")
        say("hint: report the traceback above; running the command again is safe")
        code = 1
    code = code if isinstance(code, int) else 0
    sys.exit(code if outlet is None else _delivered(outlet, code))


def _delivered(outlet: Outlet, code: int) -> int:
    """The exit code, once all output is written; that it could not be counts only if all else went well."""
    sys.stdout.flush()
    if outlet.failure is None:
        return code
    if outlet.has_lost_its_reader:
        return code or (128 + signal.SIGPIPE if outlet.is_the_result else 0)
    what = f"stdout: the output cannot be written ({outlet.failure.strerror})"
    if code or not outlet.is_the_result:
        say(what if code else f"{what}; everything else was done")
        return code
    return _deliberate(StorageFailed(what, hint="send it elsewhere; everything else was done"))


class _OnStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(one_line(record.getMessage()))


def _show_what_is_logged() -> None:
    """What shardgen itself has to say while it waits; a library's own messages are left alone."""
    ours = logging.getLogger("shardgen")
    ours.handlers = [_OnStderr()]
    ours.propagate = False


class _EndedBySignal(BaseException):
    """Raised in the main thread, so that what a command has half done is removed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def _ending_by_signals() -> Iterator[None]:
    """Signals end any command, which cleans up; `worker` and `run` have handlers of their own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    signals = StopSignals()

    def end(number: int, _frame: FrameType | None) -> None:
        is_first = signals.first is None
        signals.receive(number)
        if signals.is_urgent:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if is_first:
            raise _EndedBySignal(number)

    previous = {
        number: signal.signal(number, end)
        for number in stopping_signals()
        # A shell that starts a command in the background may have it ignore Ctrl-C.
        if number != signal.SIGINT or signal.getsignal(number) is signal.default_int_handler
    }
    try:
        yield
    finally:
        if signals.first is None:  # else this process ends now, and an echo may yet come
            for number, handler in previous.items():
                signal.signal(number, handler)


def _usage(error: Exception) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error)  # noqa: T201 - the help that was missing
        return 2
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    path = context.command_path if context is not None else _command_typed()
    if (typed := _typed_value(getattr(error, "param", None))) and repr(typed) not in message:
        message = f"{message} (typed: {typed})"
    say(f"error: {one_line(message)}")
    say(f"hint: {path} --help")
    return 2


def _command_typed() -> str:
    """The command that the line names, for an error that comes before anybody has read so far."""
    named = sys.argv[1] if len(sys.argv) > 1 else ""
    return f"shardgen {named}" if named in LINES else "shardgen"


def _typed_value(parameter: object) -> str:
    """What the command line gives to an option."""
    words = [piece for word in sys.argv for piece in (word.split("=", 1) if word[:2] == "--" else [word])]
    named = [index for index, word in enumerate(words[:-1]) if word in getattr(parameter, "opts", ())]
    return words[named[-1] + 1][:100] if named else ""


def _deliberate(error: ShardgenError) -> int:
    message = one_line(str(error))
    for problem in map(one_line, error.problems):
        if problem not in message:
            say(f"  - {problem}")
    for remark in error.remarks[:_SHOWN_REMARKS]:
        say(f"  - {remark_text(remark, indent='    ')}")
    if rest := error.remarks[_SHOWN_REMARKS:]:
        files = sum(len(remark.names) for remark in rest)
        say(f"  - and {counted(len(rest), 'other problem')} with {counted(files, 'file')}")
    say(f"error: {message}")
    if error.hint:
        say(f"hint: {one_line(error.hint)}")
    return error.exit_code
