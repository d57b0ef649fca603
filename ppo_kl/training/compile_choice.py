"""What `runtime.compile: auto` comes to: whether compiled gradient steps save more time than to compile them takes."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from ppo_kl.batch import Batch
from ppo_kl.config import TrainConfig
from ppo_kl.observations import Part, by_part
from ppo_kl.training.engine import ReplayedStep, cannot_compile
from ppo_kl.training.learner import Learner

SECONDS, SECONDS_GPU, SECONDS_RECURRENT = 15.0, 25.0, 90.0
"""That compiling takes without what PyTorch keeps of it on disk; sequences are unrolled, step by step."""
SAVED, SAVED_REPLAYED = 0.8, 0.65
"""Share of a step's overhead that a compiled one does not have; of one that is launched as a CUDA graph either way."""
TRIES = 10
"""Steps that are timed, of which the fastest counts; one that is replayed is so from the fourth on."""


class Choice(NamedTuple):
    """How gradient steps are run, and why."""

    compiled: bool
    reason: str


def choose(learner: Learner, parts: tuple[Part, ...], config: TrainConfig, num_steps: int) -> Choice:
    """Weigh the overhead of all planned gradient steps, measured on this machine, against the time to compile.

    Args:
        learner: is left as it is.
        parts: of the observation.
        config: rollouts, minibatches, epochs; its `compile` is taken to be auto.
        num_steps: environment steps that are still to be done.
    """
    device = learner.parameters.flat.device
    reason = cannot_compile(device)
    if reason is not None:
        return Choice(False, reason)
    planned = config.planned_gradient_steps(num_steps)
    needed = SECONDS if device.type == "cpu" else SECONDS_GPU
    if learner.policy.initial_state(1):
        needed = SECONDS_RECURRENT
    saved = planned * overhead(learner, parts) * (SAVED if learner.replayed is None else SAVED_REPLAYED)
    if saved > needed:
        return Choice(True, f"takes up to {needed:.0f} s and saves about {saved:.0f} s in {planned:,} gradient steps")
    return Choice(False, f"takes up to {needed:.0f} s and would save {saved:.0f} s in {planned:,} gradient steps")


def overhead(learner: Learner, parts: tuple[Part, ...]) -> float:
    """Seconds that a step takes uncompiled on next to no data, so beside its arithmetic; the fastest of a few."""
    before, batch = learner.state_dict(), _one_row(learner, parts)
    device, step = learner.parameters.flat.device, learner.step
    if learner.replayed is not None:
        step = ReplayedStep(device).of("one row", step)
    seconds = []
    try:
        for _ in range(TRIES):
            begin = time.perf_counter()
            step(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - begin)
    finally:  # also by Ctrl-C in a notebook, where training may go on
        learner.load_state_dict(before)
    return min(seconds)


@torch.no_grad()
def _one_row(learner: Learner, parts: tuple[Part, ...]) -> Batch:
    """A batch of one sample that says nothing."""
    device, state = learner.parameters.flat.device, learner.policy.initial_state(1)
    leading = (1, 1) if state else (1,)
    obs = by_part(parts, lambda p: torch.zeros(*leading, *p.shape, dtype=getattr(torch, p.dtype), device=device))
    params, value, _ = learner.policy(obs, state)
    action, zero = learner.family.mode(params), torch.zeros(1, device=device)
    logp = learner.family.build(params).log_prob(action)
    return Batch(obs, action, logp, params, zero, value, value, zero == 0, state=state)
