"""`ppo-kl completion`: what makes a shell complete commands, options and the names of shipped files."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import pkgutil
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import tyro

from ppo_kl import commands
from ppo_kl.commands.train import LAYERS, PARTS
from ppo_kl.config import TrainConfig
from ppo_kl.config.objective import KINDS
from ppo_kl.load import load_config, shipped

FOLDERS = {"config": "recipes"}
"""Where the files lie that an option of `train` names, if not in the folder of its own name."""
# Options only where one is begun: elsewhere files stand, which bash offers by itself where nothing else is left.
BASH = """
_ppo_kl() {
  local word="${COMP_WORDS[COMP_CWORD]}" answer kept=()
  _tyro_ppo_kl
  for answer in "${COMPREPLY[@]}"; do
    if [[ -n $answer && ( $answer != -* || $word == -* ) ]]; then kept+=("$answer"); fi
  done
  COMPREPLY=("${kept[@]}")
}
complete -o bashdefault -o default -F _ppo_kl ppo-kl
"""


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional], /) -> int:
    """Print a script that completes commands, options and the names of shipped files.

    bash: ppo-kl completion bash > ~/.local/share/bash-completion/completions/ppo-kl

    zsh: ppo-kl completion zsh > FOLDER/_ppo-kl, a folder of $fpath

    fish: ppo-kl completion fish > ~/.config/fish/completions/ppo-kl.fish

    Args:
        shell: for which.
    """
    print(script(shell))
    return 0


def script(shell: Literal["bash", "zsh", "fish"]) -> str:
    """The text that `shell` is to read. It holds all names, so that pressing TAB loads nothing of ours."""
    names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    asked = ["--tyro-print-completion", shell]
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict({name: options_of(name) for name in names}, args=asked, prog="ppo-kl")
    # A line is an answer: descriptions of several lines would be several.
    text = re.sub(r"^COMPLETION_SPEC = .*$", lambda line: line[0].replace(r"\n", " "), printed.getvalue(), flags=re.M)
    return text + BASH if shell == "bash" else text


def options_of(command: str) -> Callable[..., Any]:
    """What has the command's options as its parameters: the function in its file that has the command's name."""
    if command == "train":
        return _train_options()
    module = vars(importlib.import_module(f"ppo_kl.commands.{command}"))
    # `list_`, where Python has taken the name.
    found: Callable[..., Any] = module.get(command) or module.get(f"{command}_") or _nothing
    return found


def _nothing() -> None:
    """No options."""


def _train_options() -> type:
    """`train` puts its options together from the chosen objective; here from the default one."""
    fields: list[Any] = [("settings", Annotated[TrainConfig, tyro.conf.arg(name="")], load_config())]
    for layer in LAYERS:
        fields.append(_choice(layer, layer.replace("_", "-"), shipped(FOLDERS.get(layer, layer))))
    for family, part in zip(KINDS, PARTS, strict=True):
        fields.append(_choice(f"{part}_kind", f"objective.{part}.kind", list(KINDS[family])))
    fields += [("resume", str | None, None), ("plugin", str | None, None)]
    fields.append(("quiet", tyro.conf.FlagCreatePairsOff[bool], False))
    return dataclasses.make_dataclass("Train", fields)


def _choice(field: str, option: str, names: list[str]) -> tuple[str, Any, str]:
    return field, Annotated[Literal[tuple(names)], tyro.conf.arg(name=option)], names[0]


def main(arguments: list[str]) -> int:
    """Print the script."""
    return tyro.cli(completion, args=arguments, prog="ppo-kl completion")
