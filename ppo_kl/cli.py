"""The command line, `ppo-kl COMMAND`: one file in `commands` for each."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

from ppo_kl import __version__
from ppo_kl.config.checked import nearest
from ppo_kl.errors import CheckpointWarning, EnvWarning, PPOKLError

COMMANDS = {
    "train": "train an agent; without options, CartPole with the adaptive KL penalty",
    "list": "objectives, environments with a tuned file, and runs with their state",
    "inspect": "tell the KL story of one run, or compare several",
    "evaluate": "play whole episodes with a trained agent",
    "export": "write a trained agent as safetensors and ONNX, with a model card",
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
    try:
        status: int = importlib.import_module(f"ppo_kl.commands.{arguments[0]}").main(arguments[1:])
        return status
    except PPOKLError as error:
        print(f"ppo-kl: error: {error}", file=sys.stderr)
        return error.exit_code


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
    print(text.rstrip(), file=sys.stderr if file is None else file)
