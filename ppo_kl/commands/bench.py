"""`ppo-kl bench`: how fast training is on one of three problems, as one line of JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from functools import partial
from typing import Annotated, Any

import tyro

from ppo_kl import __version__
from ppo_kl.bench.workloads import WORKLOADS, settings_of
from ppo_kl.config import TrainConfig
from ppo_kl.config.checked import nearest, require_default
from ppo_kl.errors import ConfigError
from ppo_kl.load import load_config

PROFILED = 2
"""Iterations after the timed ones that `--profile` looks at."""


def bench(
    workload: str,
    objective: str = "kl_adaptive",  # noqa: ARG001 - it is in the settings already
    steps: int = 40_960,
    warmup: int = 2,
    profile: tyro.conf.FlagCreatePairsOff[bool] = False,
    *,
    settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = TrainConfig(),  # noqa: B008 - it is frozen
) -> int:
    """Train on one of three problems as `ppo-kl train` does, and print how fast it was, as one line of JSON.

    Exact KL, all diagnostics and both logs are on; the run folder is a temporary one. Seconds are those of the timed
    iterations: rollout_s (with the advantages), update_s (the gradient steps), measure_s (all that is measured of the
    update), rest_s (logs, checkpoints, what is saved at a boundary). Other settings of the workload can be changed
    below, as --env.vectorization native.

    Args:
        workload: A: HalfCheetah, 1 environment, minibatches of 64; B: CartPole, 8 environments, of 256; C: HalfCheetah,
            16 environments, of 512.
        objective: a name in configs/objective, or a file.
        steps: environment steps to time, rounded to whole rollouts, at least one.
        warmup: iterations before the clock starts, at least one.
        profile: tables of where the time goes on stderr, of two more iterations.
        settings: of the run.
    """
    if steps < 1:
        raise ConfigError(f"--steps={steps}: allowed: >= 1; nothing was run")
    if warmup < 1:
        raise ConfigError(f"--warmup={warmup}: allowed: >= 1, as what comes before is timed else; nothing was run")
    require_default(
        settings, ("total_steps", "runs_dir"), "--steps says how long, and the run folder is a temporary one"
    )
    row = measured(settings, workload, steps, warmup, profile)
    print(json.dumps(row))
    return 0


def measured(settings: TrainConfig, workload: str, steps: int, warmup: int, profile: bool) -> dict[str, Any]:
    """The row of a run in a temporary folder; the tables of a profile go to stderr."""
    import torch

    from ppo_kl.bench.meter import Meter
    from ppo_kl.bench.profiling import Profiler
    from ppo_kl.bench.timed import Timed
    from ppo_kl.training.trainer import train

    rows = settings.rollout_size
    meter = Meter(max(1, round(steps / rows)), warmup)
    wanted = meter.total_iterations + (PROFILED if profile else 0)
    timed, profiler = Timed(meter, last=wanted), Profiler(after=meter.total_iterations)
    with tempfile.TemporaryDirectory(prefix="ppo-kl-bench-") as folder:
        config = dataclasses.replace(settings, total_steps=wanted * rows, runs_dir=folder)
        done = train(config, callbacks=[timed, profiler] if profile else [timed], quiet=True)
    for table in profiler.tables:
        print(f"{table}\n", file=sys.stderr)
    compiled = done.agent.learner.compiled
    return meter.result(
        "ppo_kl",
        workload,
        version=__version__,
        torch=torch.__version__,
        objective=settings.objective.name,
        vectorization=settings.env.vectorization,
        compile="off" if compiled is None else "on" if compiled.failure is None else "failed",
        compile_s=0.0 if compiled is None else round(compiled.seconds, 2),
        num_threads=torch.get_num_threads(),
        workers=done.agent.config.runtime.num_workers,
        seed=settings.seed,
        valid=round(meter.steps / (meter.iterations * rows), 4),
    )


def main(arguments: list[str]) -> int:
    """Measure one workload."""
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--workload", default="A")
    chooser.add_argument("--objective", default="kl_adaptive")
    chosen, _ = chooser.parse_known_args(arguments)
    if chosen.workload not in WORKLOADS:
        raise ConfigError(
            f"--workload={chosen.workload!r}: unknown{nearest(chosen.workload, WORKLOADS)}; nothing was run"
        )
    workload = WORKLOADS[chosen.workload]
    # Not by the environment's name, which may have a tuned file.
    settings = load_config(base=TrainConfig(), objective=chosen.objective, overrides=settings_of(workload))
    return tyro.cli(partial(bench, settings=settings), args=arguments, prog="ppo-kl bench")
