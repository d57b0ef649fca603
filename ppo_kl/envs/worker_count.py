"""How many worker processes pay: measured on one more copy of the environment, in a process of its own.

What the measured copy does stays in that process, so that nothing of the run is moved by it: no random stream, no
module, no episode of a copy that trains.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from ppo_kl.config.env import EnvConfig
from ppo_kl.envs.action_mask import head_sizes
from ppo_kl.envs.cores import cores_allowed
from ppo_kl.envs.make import MEASURED, MakeEnv, require_imported
from ppo_kl.envs.workers import WorkerVectorEnv
from ppo_kl.errors import EnvWorkerError, PPOKLError

PATIENCE = 1.0
"""Seconds that the copy may take for one step."""
BEGINNING = 20.0
"""Seconds that it may take to be made and to begin an episode; fewer where `env.timeout` is shorter."""
MEASURING = 0.2
"""Seconds for all steps together."""
STEPS = 40
"""At most; at least two."""
PAUSE = 300e-6
"""Seconds before every other step, as acting takes; to ask a worker takes as long then as it does in a run."""
CLEARLY = 1.25
"""How many times as fast stepping has to be for a process more."""


class Chosen(NamedTuple):
    """A number of worker processes."""

    workers: int
    why: str
    """A sentence for people."""


def choose_workers(config: EnvConfig, seed: int) -> Chosen:
    """How many processes beside this one shall step a share of the environments.

    Args:
        config: which environments.
        seed: the run's; the copy that is measured has an index of its own.
    """
    cores = cores_allowed()
    if config.vectorization != "sync":
        return Chosen(0, f"env.vectorization {config.vectorization} has its own way")
    if config.num_envs == 1:
        return Chosen(0, "there is one environment")
    if cores == 1:
        return Chosen(0, "this process may use one core")
    if multiprocessing.get_start_method() != "fork":
        return Chosen(0, "processes are not forked here, so that none is started unasked")
    try:
        cost = measured(config, seed)
    except Exception as error:
        # The run makes environments of its own: what is wrong with them is told there.
        reason = str(error).partition(". ")[0] if isinstance(error, PPOKLError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())
        return Chosen(0, f"no step could be measured ({reason:.200})")
    workers = best(cost, config.num_envs, cores)
    more = max(workers, 1)
    here, shared = (_shown(seconds_of(cost, config.num_envs, n)) for n in (0, more))
    return Chosen(
        workers,
        f"a step of {config.num_envs} copies takes {here} in one process, and should take {shared} with {more} more; "
        f"{cores} cores",
    )


class Cost(NamedTuple):
    """What stepping takes, in seconds."""

    step: float
    """One step of one environment."""
    round_trip: float
    """What it takes beside the step to ask a worker, after a pause, and to hear from it."""


def seconds_of(cost: Cost, num_envs: int, workers: int) -> float:
    """A step of all environments: as long as the largest share takes, and a round trip for each worker."""
    return -(-num_envs // (workers + 1)) * cost.step + workers * cost.round_trip


def best(cost: Cost, num_envs: int, cores: int) -> int:
    """The number of workers with which a step takes least, or 0 where that is not clearly less than without."""
    fastest = min(range(min(num_envs, cores)), key=lambda workers: seconds_of(cost, num_envs, workers))
    clearly = seconds_of(cost, num_envs, 0) >= CLEARLY * seconds_of(cost, num_envs, fastest)
    return fastest if clearly else 0


def measured(config: EnvConfig, seed: int) -> Cost:
    """Step one more copy in a process of its own by random actions, `STEPS` times or as often as there is time for.

    Raises:
        PPOKLError: it cannot be made, or fails, or that takes more than `BEGINNING`.
    """
    require_imported(config)
    make = MakeEnv(config, seed, MEASURED, 0)
    env = WorkerVectorEnv([lambda: _Timed(make())], timeout=min(BEGINNING, config.timeout), name=config.id)
    outside: list[float] = []
    try:
        _, info = env.reset()
        env.timeout = PATIENCE
        env.action_space.seed(seed % 2**32)
        env.single_action_space.seed(seed % 2**32)
        end = time.perf_counter() + MEASURING
        while len(outside) < 2 or (len(outside) < STEPS and time.perf_counter() < end):
            action = _allowed(env, info)
            time.sleep(PAUSE if len(outside) % 2 else 0.0)
            begin = time.perf_counter()
            try:
                *_, info = env.step(action)
            except EnvWorkerError:
                if (took := time.perf_counter() - begin) < PATIENCE:
                    raise
                return Cost(took, 0.0)  # nothing beside a step like this
            outside.append(time.perf_counter() - begin)
        (inside,) = env.get_attr("seconds")
    finally:
        env.close()
    around = [whole - step for whole, step in zip(outside, inside, strict=True)]
    # A step of several copies finds its code and data in the caches; a worker is asked after a pause.
    return Cost(statistics.median(inside[::2]), statistics.median(around[1::2]))


def _allowed(env: WorkerVectorEnv, info: dict[str, Any]) -> Any:
    """A random action of one environment, of those that its mask allows."""
    space, mask = env.single_action_space, info.get("action_mask")
    if mask is None or not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return env.action_space.sample()
    heads = np.split(mask[0].astype(np.int8), np.cumsum(head_sizes(space))[:-1])
    action: Any = space.sample(heads[0]) if isinstance(space, spaces.Discrete) else space.sample(tuple(heads))
    return np.asarray(action)[None]


class _Timed(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps how long each step took, with the reset that follows where it ended an episode, in its own process."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.seconds: list[float] = []

    def step(self, action: Any) -> Any:
        begin = time.perf_counter()
        answer = self.env.step(action)
        self.seconds.append(time.perf_counter() - begin)
        return answer

    def reset(self, **options: Any) -> Any:
        begin = time.perf_counter()
        answer = self.env.reset(**options)
        if self.seconds:
            self.seconds[-1] += time.perf_counter() - begin
        return answer


def _shown(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
