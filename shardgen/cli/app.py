"""The `shardgen` command: its commands, and what an error prints and exits with."""

from __future__ import annotations

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
from shardgen.cli.commands import Commands
from shardgen.cli.logs import log_error, show_logs
from shardgen.cli.printable import Outlet, open_outlets
from shardgen.cli.render import Answered, one_line, remark_text, say
from shardgen.cli.usage import MISUSE, usage_error
from shardgen.domain.wording import counted
from shardgen.errors import ShardgenError, Stopped, StorageFailed
from shardgen.worker.stop import StopSignals, stopping_signals

app = typer.Typer(
    name="shardgen",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make large image data sets (composites, masks, depth maps) on machines that come and go, without "
    "losing one sample.",
    epilog="Start with `shardgen demo`; then cut-out, init, plan, preview, run. If something stopped, run "
    "the same command again.",
)
_SHOWN = 20  # problems, and remarks


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
    show_logs()
    try:
        with _ending_by_signals():
            code = app(standalone_mode=False, prog_name="shardgen")
    except MISUSE as misuse:
        code = _misused(misuse)
    except (ShardgenError, Answered) as error:
        code = _deliberate(error)
    except Stopped as stopped:
        code = _interrupted(128 + stopped.number, hint="run the same command again to continue")
    except (KeyboardInterrupt, typer.Abort, _EndedBySignal) as ended:
        code = _interrupted(getattr(ended, "exit_code", 130))
    except Exception as error:  # noqa: BLE001 - the last door: an unknown error is a bug and shows its traceback
        say(traceback.format_exc().rstrip())
        code = _deliberate(Bug(error))
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


def _misused(misuse: Exception) -> int:
    if type(misuse).__name__ == "NoArgsIsHelpError":
        print(misuse)  # noqa: T201 - the help that was missing
        return 2
    return _deliberate(usage_error(misuse))


def _interrupted(exit_code: int, *, hint: str = "") -> int:
    say(f"stopped; {hint}" if hint else "stopped")
    if _wants_json():
        from shardgen.cli.documents import ErrorDocument, ErrorPart, answer

        part = ErrorPart(
            code="Interrupted", message="stopped", hint=hint, exit_code=exit_code, problems=(), remarks=()
        )
        answer(ErrorDocument(error=part))
    return exit_code


class Bug(ShardgenError):
    """An error that nobody foresaw."""

    exit_code = 1

    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(
            f"this is a bug in shardgen: {type(error).__name__}; nothing recorded is lost",
            hint="report the traceback above; running the command again is safe",
        )


def _deliberate(raised: ShardgenError | Answered) -> int:
    """Print and log the error; with `--json` as a document, too, unless the command put it into its own."""
    error = raised.error if isinstance(raised, Answered) else raised
    message, problems = _in_lines(error)
    listed = [f"  - {problem}" for problem in problems]
    listed += [f"  - {remark_text(remark, indent='    ')}" for remark in error.remarks[:_SHOWN]]
    if rest := error.remarks[_SHOWN:]:
        files = sum(len(remark.names) for remark in rest)
        listed.append(f"  - and {counted(len(rest), 'other problem')} with {counted(files, 'file')}")
    told = [f"error: {message}"] + ([f"hint: {one_line(error.hint)}"] if error.hint else [])
    log_error(error.error if isinstance(error, Bug) else error, *told, *listed)
    for line in [*listed, *told]:
        say(line)
    if _wants_json() and error is raised:
        from shardgen.cli.documents import ErrorDocument, ErrorPart, answer

        answer(ErrorDocument(error=ErrorPart.of(error)))
    return error.exit_code


def _in_lines(error: ShardgenError) -> tuple[str, list[str]]:
    """What the error says, and the lines above it: several problems that it names have one each."""
    message, problems = one_line(str(error)), [one_line(problem) for problem in error.problems]
    named = [problem for problem in problems if problem in message]
    if len(named) > 1:
        start = message[: message.index(named[0])].rstrip(": ")
        message, named = f"{start}: {counted(len(problems), 'problem')}", []
    shown = [problem for problem in problems if problem not in named]
    if len(shown) > _SHOWN:
        shown[_SHOWN:] = [f"and {len(shown) - _SHOWN:,} more"]
    return message, shown


def _wants_json() -> bool:
    """Whether the command line asks for JSON, even if the rest of it cannot be read."""
    words = sys.argv[1:]
    return "--json" in (words[: words.index("--")] if "--" in words else words)
