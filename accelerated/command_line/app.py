"""The commands, and the one place where errors become a line and an exit code."""

import errno
import os
import platform
import re
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperGroup

from ..training import TrainingError, UserError
from .benchmark import benchmark
from .check import check
from .compare import compare
from .costs import costs
from .data import data
from .evaluate import evaluate
from .html_report import report
from .predict import predict
from .rules import rules
from .train import train
from .vectors import vectors
from .versions import version

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]  # typer exports no name for the class of its own errors


CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")
"""What a terminal would not show but obey."""

STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end a command as Ctrl-C does, whose handling raises KeyboardInterrupt too."""


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number))


class Commands(TyperGroup):
    """Ends user errors in one line on stderr and exit code 2 (3 where training diverged), signals in 128 and theirs.

    Other errors are bugs and show as such.
    """

    def invoke(self, ctx: Any) -> Any:
        main_thread = threading.current_thread() is threading.main_thread()
        heard = [number for number in STOPS if main_thread and signal.getsignal(number) is signal.SIG_DFL]
        try:
            for number in heard:
                signal.signal(number, _stop)
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            number = stop.args[0] if stop.args else signal.SIGINT
            word = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
            print("; ".join([f"prograde: {word}", *getattr(stop, "__notes__", [])]), file=sys.stderr)
            raise typer.Exit(128 + number) from stop
        finally:
            for number in heard:
                signal.signal(number, signal.SIG_DFL)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **settings: Any) -> Any:  # type: ignore[override]
        standalone = settings.pop("standalone_mode", True)
        try:
            code = super().main(args, prog_name, standalone_mode=False, **settings)
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing left to flush at exit
            code = 1
        except (UserError, OSError, MemoryError, RuntimeError, USAGE_ERROR) as error:
            message = _message(error, sys.argv[1:] if args is None else args)
            if message is None:
                raise
            shown = CONTROLS.sub("\ufffd", " ".join(message.split()))  # names may be those of a stranger's files
            print(f"prograde: error: {shown}", file=sys.stderr)
            code = 3 if isinstance(error, TrainingError) else 2
        if standalone:
            sys.exit(code)
        return code


def _message(error: Exception, args: Sequence[str]) -> str | None:
    """The message for the user, or None for an error that is not theirs."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return "out of memory; a smaller --batch or network may fit"
    if isinstance(error, USAGE_ERROR):
        return str(getattr(error, "format_message")()) + _given(error, args)  # noqa: B009
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            reason = "the disk is full"
        return f"'{error.filename}': {reason}" if error.filename else reason
    return None


def _given(error: Exception, args: Sequence[str]) -> str:
    """What was given for the option that an error is about, which typer does not say."""
    option_names = getattr(getattr(error, "param", None), "opts", [])
    for name, value in zip(args, [*args[1:], ""], strict=True):
        if name in option_names:
            return f"; got '{value}'"
        if name.partition("=")[0] in option_names:
            return f"; got '{name.partition('=')[2]}'"
    return ""


app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
app.command()(train)
app.command()(compare)
app.command()(evaluate)
app.command()(predict)
app.command()(rules)
app.command()(benchmark)
app.command()(costs)
app.add_typer(data, name="data")
app.command()(report)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(check)
app.add_typer(vectors, name="vectors")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prograde {version()} (PyTorch {torch.__version__}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def prograde(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions.")
    ] = False,
) -> None:
    """Train networks without a backward pass, and hold the result against backpropagation.

    Exit codes: 0 where all is done; 2 for input or files that can't be used, which one line on stderr names; 3 where
    training diverged (in compare that of a rule or more; the table has the others); 130 after Ctrl-C and 143 after
    SIGTERM, with a line that says how to go on; 1 for a bug, with a traceback, and for what check refuses.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    if context.invoked_subcommand in ("train", "compare", "benchmark"):  # with errors near 0 they take threefold
        torch.set_flush_denormal(True)
        context.call_on_close(lambda: torch.set_flush_denormal(False))
