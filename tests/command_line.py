"""`ppo-kl` in this process."""

from typing import Any

from ppo_kl.cli import main


def run(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    """Exit status, and what it says on stdout and stderr."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err
