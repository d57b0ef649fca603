"""The command line: `ppo-kl train | evaluate`. Settings are read and checked before torch is loaded."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from ppo_kl import __version__
from ppo_kl.config import TrainConfig
from ppo_kl.errors import ConfigError, EnvWarning, PPOKLError
from ppo_kl.imports import import_modules, modules_in
from ppo_kl.load import load_config, value_of

USAGE = """\
usage: ppo-kl COMMAND [OPTIONS]

  train      train an agent; without options, CartPole with the adaptive KL penalty
  evaluate   play whole episodes with a trained agent

ppo-kl COMMAND --help says more."""

TRAIN_HELP = """\
Train an agent.

Which settings to start from (files, or names of shipped ones):
  --config FILE     a whole configuration, or a name in configs/recipes
  --env NAME        a name in configs/env, a file, a Gymnasium id as Hopper-v5, or package.module:Id of your own
                    (default: cartpole)
  --env.kwargs.NAME VALUE, --env.wrappers.NAME[.KEY VALUE]
                    what the environment is made with, as gravity 1.6, and the wrappers around it
  --objective NAME  a name in configs/objective, as clip or kl_pi, or a file (default: kl_adaptive)
  --kl-stop NAME    early stop of an update: off, sb3, cleanrl, spinningup, omnisafe, or a file
  --runtime NAME    cpu, cuda, or a file
  --objective.surrogate.kind, --objective.penalty.kind, --objective.controller.kind KIND
                    another part in the objective's place, as k3 or pi, with its defaults
  --plugin MODULE   import this first, once or more: it may register objectives, or hold the environment or the network
                    that a run was made with, for --resume
  --resume RUN      go on with a run where it stopped
  --quiet           print nothing

Every single setting is an option below; options win over files."""


LAYERS = ("config", "env", "objective", "kl_stop", "runtime")
"""Options that name files to start from, in the order in which later ones win."""
PARTS = ("surrogate", "penalty", "controller")


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is that of the error, if there is one."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"ppo-kl {__version__}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"ppo-kl: error: no command {arguments[0]!r}\n{USAGE}", file=sys.stderr)
        return 2
    warnings.showwarning = _show_warning
    try:
        return command(arguments[1:])
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
    ours = issubclass(category, EnvWarning)
    text = f"ppo-kl: warning: {message}" if ours else warnings.formatwarning(message, category, filename, lineno, line)
    print(text.rstrip(), file=sys.stderr if file is None else file)


def _train(arguments: list[str]) -> int:
    chosen, rest = _chooser().parse_known_args(arguments)
    import_modules(chosen.plugin, "--plugin")
    if chosen.resume is not None:
        named = [name.replace("_", "-") for name in LAYERS if getattr(chosen, name) is not None]
        named += [f"objective.{part}.kind" for part in PARTS if getattr(chosen, part) is not None]
        if rest or named:
            other = rest[0] if rest else f"--{named[0]}"
            print(f"ppo-kl: error: --resume goes on with the run's own settings; {other} has no place", file=sys.stderr)
            return 2
        from ppo_kl.training.trainer import resume

        return resume(chosen.resume, quiet=chosen.quiet).exit_status
    layers = {name: getattr(chosen, name) for name in LAYERS}
    kinds = {part: kind for part in PARTS if (kind := getattr(chosen, part)) is not None}
    entries, rest = _entries(rest)
    config = load_config(**layers, kinds=kinds, overrides=entries)
    config = tyro.cli(TrainConfig, default=config, args=rest, prog="ppo-kl train", description=TRAIN_HELP)
    import_modules(modules_in(config), "module")
    from ppo_kl.training.trainer import train

    return train(config, quiet=chosen.quiet).exit_status


def _chooser() -> argparse.ArgumentParser:
    chooser = argparse.ArgumentParser(prog="ppo-kl train", add_help=False, allow_abbrev=False)
    for name in (*LAYERS, "resume"):
        chooser.add_argument(f"--{name.replace('_', '-')}")
    for part in PARTS:
        chooser.add_argument(f"--objective.{part}.kind", dest=part)
    chooser.add_argument("--quiet", action="store_true")
    chooser.add_argument("--plugin", action="append", default=[])
    return chooser


_ENTRY = re.compile(r"--(env\.(?:kwargs|wrappers)\.[^=\s]+)(?:=(.*))?")


def _entries(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`--env.kwargs.NAME VALUE` and `--env.wrappers.NAME[.KEY VALUE]` by dotted key, and the other arguments.

    Their names are the environment's own, so that no parser can know them beforehand.
    """
    entries: dict[str, Any] = {}
    rest: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        match = _ENTRY.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        key, value = match.groups()
        if value is None and left and not left[0].startswith("--"):
            value = left.pop(0)
        if value is None and not key.startswith("env.wrappers."):
            raise ConfigError(f"{argument}: needs a value")
        entries[key] = {} if value is None else value_of(value)
    return entries, rest


def evaluate(
    run: Annotated[str, tyro.conf.Positional],
    /,
    episodes: int = 10,
    stochastic: bool = False,
    device: str | None = None,
    plugin: tuple[str, ...] = (),
) -> int:
    """Play whole episodes with a trained agent, on environments of their own.

    Args:
        run: a run folder (its newest checkpoint) or a checkpoint.
        episodes: how many.
        stochastic: draw actions from the policy instead of taking the most likely ones.
        device: cpu, cuda, cuda:<index> or auto; none: where it was trained.
        plugin: modules to import first, for an agent whose objective, environment or network is not one of ours.
    """
    import_modules(plugin, "--plugin")
    from ppo_kl.training.agent import Agent

    agent = Agent.load(run, device=device)
    result = agent.evaluate(episodes, deterministic=not stochastic)
    actions = "sampled" if stochastic else "most likely"
    print(f"{agent.config.env.id}, {agent.config.objective.name}, trained for {agent.steps:,} steps")
    print(
        f"return {result.mean:.2f} ± {result.std:.2f} (mean ± SD of {len(result.returns)} episodes, {actions} actions)"
    )
    return 0


def _evaluate(arguments: list[str]) -> int:
    return tyro.cli(evaluate, args=arguments, prog="ppo-kl evaluate")


COMMANDS: dict[str, Callable[[list[str]], int]] = {"train": _train, "evaluate": _evaluate}
"""Command by name."""
