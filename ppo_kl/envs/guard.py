"""One environment whose every episode is seeded and whose every answer is checked, in the process that steps it."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np

from ppo_kl.envs.action_mask import flat_mask
from ppo_kl.envs.faults import close, raised
from ppo_kl.errors import EnvDataError, PPOKLError
from ppo_kl.observations import Array, Part, each_part, parts_of, read, space_of

LARGEST = float(np.finfo(np.float32).max)
"""Training is done in float32; what is larger is infinite there."""


def is_usable(x: Any) -> Any:
    """Where a number, or those of an array, is finite in float32."""
    # In float16 the largest float32 would itself be infinite.
    return np.isfinite(x) if getattr(x, "dtype", None) in (np.float16, np.float32) else abs(x) <= LARGEST


def all_usable(x: Array) -> bool:
    """Whether every number of a float array is surely finite in float32; False may only mean that a closer look is due.

    A sum of squares within bounds has no term beyond them: one product in place of a comparison of each number.
    """
    return float(np.vdot(x, x)) <= LARGEST**2


def episode_seed(seed: int, env: int, episode: int) -> int:
    """The seed of one episode: a function of the run's seed, the environment's index and the episode's number.

    Args:
        seed: the run's.
        env: index of the environment.
        episode: how many episodes this environment began before.

    Source: numpy.random.SeedSequence; neighbouring seeds share no stream, as `seed + i` would.
    """
    return int(np.random.SeedSequence(seed, spawn_key=(env, episode)).generate_state(1, np.uint64)[0])


class GuardedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Resets episode k of environment i from `episode_seed(seed, i, k)`, also where the reset is automatic, and checks.

    The last observation of an episode is handed out as a copy: with SAME_STEP the next episode begins before anybody
    has read it, in an environment that may write all its observations into one array. Of `info` only what training uses
    is passed on, so that nothing else has to be sent between processes.

    Args:
        env: to be guarded.
        name: its id, for messages.
        seed: the run's.
        index: of this environment.
        episode: how many episodes it began in an earlier part of the run.
        truncates: whether a number that is not finite cuts the episode, at the last observation that was, rather than
            to be handed on.
    """

    def __init__(
        self, env: gym.Env[Any, Any], name: str, seed: int, index: int, episode: int, *, truncates: bool = False
    ) -> None:
        super().__init__(env)
        self._name, self._seed, self._index, self._episode = name, seed, index, episode
        self._truncates = truncates
        self._parts = parts_of(env.observation_space)
        self._promised = {part.key: np.dtype(space_of(part, env.observation_space).dtype) for part in self._parts}
        self._accepted: dict[str, np.dtype[Any]] = {}
        self._usual: np.dtype[Any] | None = None
        self._shape = self._parts[0].shape
        self._steps = 0
        self._last: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """Begin the next episode; a seed from outside is not used."""
        this_episode = episode_seed(self._seed, self._index, self._episode)
        self._episode += 1
        self._steps = 0
        try:
            answer = self.env.reset(seed=this_episode, options=options)
        except PPOKLError:
            raise
        except Exception as error:
            raise raised(self._where(), "reset", error) from error
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)):
            raise self._fault(f"reset answered {_shown(answer)}, expected a pair of an observation and a dict")
        obs, info = answer
        self._check(obs)
        if self._truncates:
            if not self._finite(obs):
                raise self._fault(f"reset answered an observation that is not finite: {_shown(obs)}")
            self._last = obs = self._copied(obs)
        return obs, self._passed_on(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment."""
        try:
            answer = self.env.step(action)
        except PPOKLError:
            raise
        except Exception as error:
            raise raised(self._where(), "step", error) from error
        if not (isinstance(answer, tuple) and len(answer) == 5 and isinstance(answer[4], dict)):
            raise self._fault(f"step answered {_shown(answer)}, expected (obs, reward, terminated, truncated, info)")
        obs, reward, terminated, truncated, info = answer
        self._steps += 1
        # NumPy's float64 is a float too.
        reward = float(reward) if isinstance(reward, float) else self._number(reward)
        if not (type(terminated) is type(truncated) is bool):
            terminated, truncated = self._flag("terminated", terminated), self._flag("truncated", truncated)
        # An array as the last one was needs no further look.
        if not (type(obs) is np.ndarray and obs.dtype is self._usual and obs.shape == self._shape):
            self._check(obs)
        if self._truncates:
            if not (self._finite(obs) and is_usable(reward)):
                kept = reward if is_usable(reward) else 0.0
                # Over for good, and only the last observation is bad: nothing is bootstrapped from it anyway.
                over = terminated and kept == reward
                return self._last, kept, over, not over, {"nonfinite": True}
            self._last = obs = self._copied(obs)
        elif terminated or truncated:
            obs = self._copied(obs)
        return obs, reward, terminated, truncated, self._passed_on(info) if info else {}

    def replay(self, actions: Iterable[Any]) -> tuple[Any, float, bool, dict[str, Any]]:
        """Begin the next episode and go on by these actions.

        Args:
            actions: those of an episode that began from the same seed and is not over.

        Returns:
            Where that led to: the observation, the return so far, whether the episode is over after all, the info.
        """
        obs, info = self.reset()
        total, over = 0.0, False
        for action in actions:
            obs, reward, terminated, truncated, info = self.step(action)
            total += reward
            over = terminated or truncated
            if over:
                break
        return obs, total, over, info

    def close(self) -> None:
        """Close the environment, or warn that it cannot be closed."""
        close(self.env, self._where())

    def _where(self) -> str:
        return f"environment {self._index} ({self._name}), step {self._steps} of its episode {self._episode - 1},"

    def _fault(self, what: str) -> EnvDataError:
        return EnvDataError(
            f"{self._where()} sent data that cannot be trained on: {what}; no update was made with it, weights and "
            "checkpoints are as before; mend the environment"
        )

    def _number(self, reward: Any) -> float:
        """A reward as a float: any real number, also in an array or tensor of one."""
        value = np.asarray(reward) if hasattr(reward, "__array__") else reward
        if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "biuf":
            return float(value.reshape(()))
        if isinstance(value, numbers.Real):
            return float(value)
        raise self._fault(f"reward {_shown(reward)} of type {type(reward).__name__}, expected one number")

    def _flag(self, name: str, value: Any) -> bool:
        plain = value.item() if hasattr(value, "item") and np.size(value) == 1 else value
        if isinstance(plain, (bool, int)) and plain in (0, 1):
            return bool(plain)
        raise self._fault(f"{name} is {_shown(value)} of type {type(value).__name__}, expected True or False")

    def _check(self, obs: Any) -> None:
        for part in self._parts:
            try:
                value = obs
                for key in part.path:
                    value = value[key]
            except (KeyError, IndexError, TypeError):
                raise self._fault(f"observation {_shown(obs)} has no part {part.key!r}") from None
            dtype = getattr(value, "dtype", None)
            if dtype is not None and dtype is self._accepted.get(part.key) and value.shape == part.shape:
                continue
            self._check_part(part, value)

    def _check_part(self, part: Part, value: Any) -> None:
        called = f"observation {part.key!r}" if part.path else "observation"
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, RuntimeError):  # torch's tensors that require a gradient: RuntimeError
            raise self._fault(f"{called} is {_shown(value)}, expected an array of shape {part.shape}") from None
        if array.shape != part.shape:
            raise self._fault(f"{called} has shape {array.shape}, expected {part.shape}")
        # Observations are written into arrays of the space's own type: 0.5 or NaN would be a whole number there.
        for dtype in (np.dtype(part.dtype), self._promised[part.key]):
            if array.dtype.kind not in "biuf" or not np.can_cast(array.dtype, dtype, "same_kind"):
                raise self._fault(f"{called} has dtype {array.dtype}, which is no {dtype}: {_shown(value)}")
        if hasattr(value, "dtype"):
            self._accepted[part.key] = array.dtype
            if not part.path:
                self._usual = array.dtype

    def _copied(self, obs: Any) -> Any:
        return copy.deepcopy(obs) if self._parts[0].path else np.array(obs)

    def _finite(self, obs: Any) -> bool:
        values = (x for _, x in each_part(read(self._parts, obs)))
        return all(x.dtype.kind != "f" or bool(is_usable(x).all()) for x in values)

    def _passed_on(self, info: dict[str, Any]) -> dict[str, Any]:
        mask = info.get("action_mask")
        if mask is None or isinstance(self.env.action_space, gym.spaces.Box):
            return {}
        try:
            return {"action_mask": flat_mask(mask, self.env.action_space)}
        except EnvDataError as error:
            raise self._fault(str(error)) from None


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:117]}..."
