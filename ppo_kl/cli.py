"""The command line, `ppo-kl COMMAND`: one file in `commands` for each."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ppo_kl import __version__
from ppo_kl.config.checked import nearest
from ppo_kl.errors import CheckpointWarning, EnvWarning, PPOKLError

COMMANDS = {
    "train": "train an agent; without options, CartPole with the adaptive KL penalty",
    "list": "objectives, environments with a tuned file, and runs with their state",
    "inspect": "tell the KL story of one run, or compare several",
    "ablate": "run objectives × environments × seeds, and report which is better and how sure that is",
    "report": "make a study's report again, or one of runs made by hand",
    "evaluate": "play whole episodes with a trained agent",
    "export": "write a trained agent as safetensors and ONNX, with a model card",
    "bench": "measure how fast training is, as one line of JSON",
    "completion": "print a script that completes these commands and their options in your shell",
}
"""Command -> what it does; `ppo_kl.commands.COMMAND` is loaded when it is called."""

USAGE = "\n".join(
    [
        "usage: ppo-kl COMMAND [OPTIONS]",
        "",
        *(f"  {name:11} {what}" for name, what in COMMANDS.items()),
        "",
        "ppo-kl COMMAND --help says more.",
    ]
)


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is that of the error, if there is one."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"ppo-kl {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"ppo-kl: error: no command {arguments[0]!r}{nearest(arguments[0], COMMANDS)}\n{USAGE}", file=sys.stderr)
        return 2
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # λ and × are not in every encoding
    try:
        with _ended_by_signals():
            status: int = importlib.import_module(f"ppo_kl.commands.{arguments[0]}").main(arguments[1:])
            return status
    except PPOKLError as error:
        print(f"ppo-kl: error: {error}", file=sys.stderr)
        return error.exit_code


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the process with one line, 128 + their number, and no traceback.

    Not by an exception: it would come out of a library that is half imported as something else. A run that is training
    has handlers of its own, which save it first.
    """

    def end(number: int, _frame: Any) -> None:
        line = f"ppo-kl: stopped by {signal.Signals(number).name}; what was saved before stays\n"
        with suppress(OSError):
            os.write(2, line.encode())
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        for number, handler in before.items():
            if not (number == signal.SIGHUP and handler == signal.SIG_IGN):  # as under nohup
                signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Ours as a sentence; of others also where they come from."""
    ours = issubclass(category, (EnvWarning, CheckpointWarning))
    text = f"ppo-kl: warning: {message}" if ours else warnings.formatwarning(message, category, filename, lineno, line)
    with suppress(OSError):  # nobody is left to read it
        print(text.rstrip(), file=sys.stderr if file is None else file)
