"""N environments in several processes: actions and answers lie in memory that all of them see."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_kl.envs.faults import close
from ppo_kl.envs.processes import Workers
from ppo_kl.envs.serial import copied
from ppo_kl.envs.share import Infos, Share
from ppo_kl.envs.shared import Rows, Spaces, put, rows_in, shared_memory
from ppo_kl.envs.worker import Maker
from ppo_kl.errors import ConfigError, EnvWorkerError
from ppo_kl.observations import Array


def require_alike(spaces: Sequence[tuple[Any, Any]], name: str) -> None:
    """Refuse copies of an environment that differ in what they show or take.

    Args:
        spaces: observation space and action space of each copy.
        name: the environment's id.

    Raises:
        ConfigError: one differs from the first.
    """
    for number, theirs in enumerate(spaces):
        for kind, first, other in zip(("observation", "action"), spaces[0], theirs, strict=True):
            if first != other:
                raise ConfigError(
                    f"env.id={name!r}: the copies of an environment must be alike, but number {number} has the {kind} "
                    f"space {other}, number 0 has {first}; all were closed and nothing was run",
                    "id",
                )


def shares_of(num_envs: int, workers: int) -> list[range]:
    """Which environments this process steps, and which each worker: in their order, as evenly as can be.

    This process has the smallest share, since it also tells the others what to do.
    """
    bounds = [num_envs * part // (workers + 1) for part in range(workers + 2)]
    return [range(begin, end) for begin, end in itertools.pairwise(bounds)]


class WorkerVectorEnv(VectorEnv[Any, Any, Any]):
    """N environments in worker processes and in this one, that reset in the step that ends an episode.

    Args:
        makers: make one guarded environment each, in the process that steps it; picklable unless processes are forked.
        workers: how many processes beside this one, which steps a share as well; none: one for each environment, and
            this one steps none.
        timeout: seconds without any answer after which the workers that still owe one count as hanging; as many times
            more as a worker has environments.
        name: the environment's id, for messages.

    Raises:
        EnvWorkerError: an environment failed, its process died or did not answer; so do `reset` and `step`.
        ConfigError: the environments have different spaces, or such as are no arrays of numbers.
    """

    answers_fit = True
    """Its arrays have the shapes and types that its spaces promise, and are the caller's own."""

    def __init__(self, makers: Sequence[Maker], *, timeout: float, name: str, workers: int | None = None) -> None:
        self.num_envs = len(makers)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self._name = name
        self._workers = Workers(timeout, name)
        self._own: list[gym.Env[Any, Any]] = []
        alone = [range(0), *(range(i, i + 1) for i in range(self.num_envs))]
        self._shares = alone if workers is None else shares_of(self.num_envs, workers)
        here, *there = self._shares
        with self._closed_by_any_error():
            self._workers.start(makers, there)
            self._own.extend(makers[i]() for i in here)
            spaces = [(env.observation_space, env.action_space) for env in self._own]
            spaces += [each for share in self._workers.answers("its constructor") for each in share]
            require_alike(spaces, name)
            self._rows = self._shared_rows(spaces[0])
            self._share = Share(self._own, self._rows.of(here, spaces[0])) if self._own else None
        self.single_observation_space, self.single_action_space = spaces[0]
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @property
    def timeout(self) -> float:
        """Seconds, as in the arguments; may be set anew."""
        return self._workers.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._workers.timeout = seconds

    def _shared_rows(self, made_for: Spaces) -> Rows:
        memory = shared_memory(made_for, self.num_envs)
        try:
            self._workers.give_rows(memory, self.num_envs)
            return rows_in(memory, made_for, self.num_envs)
        finally:
            os.close(memory)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """Begin an episode everywhere; a seed from outside is not used."""
        infos = self._merged(self._called("reset", [options] * len(self._shares)))
        return copied(self._rows.answers.obs), infos

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """Step every environment; the last observation of an episode is in `final_obs`, its info in `final_info`."""
        self._require_open("step")
        put(self._rows.action, actions)
        with self._closed_by_any_error():
            self._workers.ask_step()
            own = self._share.step() if self._share else {}
            infos = self._merged([own, *self._workers.answers("step")])
        told = self._rows.answers
        return copied(told.obs), told.reward.copy(), told.terminated.copy(), told.truncated.copy(), infos

    def replay(self, actions: Sequence[Sequence[Any]]) -> tuple[Any, Array, Array, dict[str, Any]]:
        """Begin an episode everywhere and go on by the actions of each, side by side; see `GuardedEnv.replay`."""
        each = [actions[share.start : share.stop] for share in self._shares]
        # An answer to n actions may take as long as n answers.
        infos = self._merged(self._called("replay", each, patience=1.0 + max(map(len, actions))))
        told = self._rows.answers
        return copied(told.obs), told.reward.copy(), told.terminated.copy(), infos

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment, or of the innermost wrapper that has it."""
        return tuple(itertools.chain(*self._called("get_attr", [name] * len(self._shares))))

    def close_extras(self, **_: Any) -> None:
        """End the workers, and close the environments of this process."""
        self._workers.end()
        for i, env in enumerate(self._own):
            close(env, f"environment {i} ({self._name})")
        self.__dict__.pop("_share", None)
        self.__dict__.pop("_rows", None)  # the memory goes with the last who knows it

    def _called(self, call: str, arguments: Sequence[Any], patience: float = 1.0) -> list[Any]:
        """What each share answers to a call of `Share`, this process's first."""
        self._require_open(call)
        with self._closed_by_any_error():
            here, *there = arguments
            self._workers.ask(call, there)
            own = getattr(self._share, call)(here) if self._share else ()
            return [own, *self._workers.answers(call, patience)]

    def _merged(self, infos: Iterable[Infos | None]) -> dict[str, Any]:
        """The infos of all shares, as Gymnasium's vector environments have them."""
        merged: dict[str, Any] = {}
        for share, told in zip(self._shares, infos, strict=True):
            for i, info in (told or {}).items():
                merged = self._add_info(merged, info, share[i])
        return merged

    def _require_open(self, call: str) -> None:
        if self.closed:
            raise EnvWorkerError(f"env.id={self._name!r}: {call} after its workers were closed; make it anew.")

    @contextlib.contextmanager
    def _closed_by_any_error(self) -> Iterator[None]:
        # Also by Ctrl-C: an answer that nobody waited for would be taken for the answer to the next call.
        try:
            yield
        except BaseException:
            self.close()
            raise
