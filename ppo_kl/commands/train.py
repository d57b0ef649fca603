"""`ppo-kl train`. Settings are read and checked before torch is loaded."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import tyro

from ppo_kl.config import RuntimeConfig, TrainConfig
from ppo_kl.config.objective import ObjectiveConfig
from ppo_kl.config.unknown import kinds_with, whose
from ppo_kl.errors import ConfigError
from ppo_kl.imports import import_modules, import_modules_in
from ppo_kl.load import NULL, from_yaml, load_config, value_of

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
  --resume RUN      go on with a run where it stopped; with --total-steps N to another end, from which schedules are
                    then reckoned
  --init-from RUN   begin with the weights of another run, or of a checkpoint, and nothing else of it; unless --env or
                    --config is given, with the settings of that run, too: --objective and others change them
  --quiet           print nothing

Every single setting is an option below; options win over files."""


_WITH_EXPONENT = re.compile(r"(--[^=\s]+=)?(\d+(?:\.\d+)?[eE]\+?\d+)")

LAYERS = ("config", "env", "objective", "kl_stop", "runtime")
"""Options that name files to start from, in the order in which later ones win."""
PARTS = ("surrogate", "penalty", "controller")


def main(arguments: list[str]) -> int:
    """Train, or go on with a run."""
    chosen, rest = _chooser().parse_known_args(arguments)
    import_modules(chosen.plugin, "--plugin")
    if chosen.resume is not None:
        return _resume(chosen, rest)
    layers = {name: getattr(chosen, name) for name in LAYERS}
    kinds = {part: kind for part in PARTS if (kind := getattr(chosen, part)) is not None}
    entries, rest = _entries(rest)
    base = None
    if chosen.init_from is not None:
        entries["init_from"] = None if chosen.init_from in NULL else chosen.init_from
        if entries["init_from"] is not None and chosen.config is None and chosen.env is None:
            base = _settings_of(Path(chosen.init_from))
    rest = [_without_exponent(argument) for argument in rest]
    config = load_config(**layers, kinds=kinds, overrides=entries, base=base)
    _refuse_of_other_parts(rest, config.objective)
    config = tyro.cli(TrainConfig, default=config, args=rest, prog="ppo-kl train", description=TRAIN_HELP)
    import_modules_in(config, base)  # what the saved run names is imported by --plugin alone
    from ppo_kl.training.trainer import train

    return train(config, quiet=chosen.quiet).exit_status


def _resume(chosen: argparse.Namespace, rest: list[str]) -> int:
    """Go on with a run; of its settings, only how long and where it trains may be other ones."""
    named = [name.replace("_", "-") for name in (*LAYERS, "init_from") if getattr(chosen, name) is not None]
    named += [f"objective.{part}.kind" for part in PARTS if getattr(chosen, part) is not None]
    steps = argparse.ArgumentParser(prog="ppo-kl train --resume RUN", add_help=False, allow_abbrev=False)
    steps.add_argument("--total-steps", type=int)
    steps.add_argument("--runtime.device", dest="device")
    extended, rest = steps.parse_known_args([_without_exponent(argument) for argument in rest])
    if rest or named:
        other = rest[0] if rest else f"--{named[0]}"
        print(
            "ppo-kl: error: --resume goes on with the run's own settings, but for --total-steps and "
            f"--runtime.device; {other} has no place",
            file=sys.stderr,
        )
        return 2
    from ppo_kl.training.trainer import resume

    done = resume(chosen.resume, total_steps=extended.total_steps, device=extended.device, quiet=chosen.quiet)
    return done.exit_status


def _chooser() -> argparse.ArgumentParser:
    chooser = argparse.ArgumentParser(prog="ppo-kl train", add_help=False, allow_abbrev=False)
    for name in (*LAYERS, "resume", "init_from"):
        chooser.add_argument(f"--{name.replace('_', '-')}")
    for part in PARTS:
        chooser.add_argument(f"--objective.{part}.kind", dest=part)
    chooser.add_argument("--quiet", action="store_true")
    chooser.add_argument("--plugin", action="append", default=[])
    return chooser


def _settings_of(path: Path) -> TrainConfig:
    """What the run behind a checkpoint was trained with, but for where it ran and lay."""
    from ppo_kl.checkpoint import load_from

    config = from_yaml(load_from(path)["config"], f"{path} (config)")
    return dataclasses.replace(config, runs_dir=TrainConfig.runs_dir, runtime=RuntimeConfig(), init_from=None)


def _without_exponent(argument: str) -> str:
    """1e6 as 1000000, which is an integer where one is wanted and the same number where not."""
    match = _WITH_EXPONENT.fullmatch(argument)
    if match is None or not float(match[2]).is_integer():
        return argument
    return f"{match[1] or ''}{int(float(match[2]))}"


_OF_A_PART = re.compile(rf"--objective\.({'|'.join(PARTS)})\.([\w-]+)(?:=.*)?", re.DOTALL)


def _refuse_of_other_parts(arguments: list[str], objective: ObjectiveConfig) -> None:
    """Say whose an option is that the chosen objective's part does not have; what nobody has, tyro answers."""
    for argument in arguments:
        if match := _OF_A_PART.fullmatch(argument):
            part, name = type(getattr(objective, match[1])), match[2].replace("-", "_")
            if not hasattr(part, name) and kinds_with(name):
                option = argument.partition("=")[0]
                raise ConfigError(f"{option}: objective {objective.name!r} has no such setting{whose(name, part)}")


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
