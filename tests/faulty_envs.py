"""Environments that send what no environment should, or say which actions may be taken; used as faulty_envs:Class.

They learn which environment they are from the seed of their reset, so that a run of theirs is seeded with `SEED`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from toy_envs import FAULTY_ENV, SEED, SMALL, place_of

from ppo_kl.config import EnvConfig
from ppo_kl.training.agent import Agent

Answer = dict[str, Any]
"""obs, reward, terminated, truncated and info by name."""


def sends(**parts: Any) -> Callable[[Answer], Any]:
    """The answer with other parts."""
    return lambda answer: (answer | parts).values()


def in_obs(value: float) -> Callable[[Answer], Any]:
    """The answer with `value` in the last place but one of the observation."""

    def changed(answer: Answer) -> Any:
        obs = answer["obs"]
        numbers = obs["arm"]["joints"] if isinstance(obs, dict) else obs
        numbers.flat[-2] = value
        return answer.values()

    return changed


def in_part(key: str, value: Any) -> Callable[[Answer], Any]:
    """The answer with `value` as one part of a dict of observations; nothing: without it."""

    def changed(answer: Answer) -> Any:
        obs = {k: v for k, v in answer["obs"].items() if k != key}
        return sends(obs=obs if value is None else obs | {key: value})(answer)

    return changed


NUMBERS = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "1e20": 1e20, "1e38": 1e38, "1e+39": 1e39, "2.5": 2.5}
FAULTS: dict[str, Callable[[Answer], Any]] = {
    "none": sends(),
    **{f"obs {name}": in_obs(value) for name, value in NUMBERS.items()},
    **{f"reward {name}": sends(reward=value) for name, value in NUMBERS.items()},
    "reward None": sends(reward=None),
    "reward str": sends(reward="1.0"),
    "reward complex": sends(reward=1 + 1j),
    "reward array of two": sends(reward=np.ones(2)),
    "reward list": sends(reward=[1.0]),
    "reward array of words": sends(reward=np.array(["1"])),
    "reward array of one": sends(reward=np.array([2.5])),
    "reward array of no dimensions": sends(reward=np.array(2.5)),
    "reward float32": sends(reward=np.float32(2.5)),
    "reward float64": sends(reward=np.float64(2.5)),
    "reward int": sends(reward=2),
    "reward int64": sends(reward=np.int64(2)),
    "reward bool": sends(reward=True),
    "reward numpy bool": sends(reward=np.True_),
    "reward tensor of no dimensions": sends(reward=torch.tensor(2.5)),
    "four parts": lambda answer: list(answer.values())[:4],
    "no answer": lambda answer: None,
    "info no dict": sends(info=[]),
    "obs of shape (3,)": sends(obs=np.zeros(3, np.float32)),
    "obs of shape (1, 2)": sends(obs=np.zeros((1, 2), np.float32)),
    "obs ragged": sends(obs=[[1.0], [1.0, 2.0]]),
    "obs of words": sends(obs=np.array(["a", "b"])),
    "obs of objects": sends(obs=np.array([None, 1.0], object)),
    "obs complex": sends(obs=np.zeros(2, complex)),
    "obs None": sends(obs=None),
    "obs float64": sends(obs=np.array([0.25, 0.5])),
    "obs list": sends(obs=[0.25, 0.5]),
    "obs uint8": sends(obs=np.array([0, 1], np.uint8)),
    "obs outside": sends(obs=np.array([-3.0, 5.0], np.float32)),
    "image as float": in_part("image", np.zeros((2, 2), np.float32)),
    "image as signed": in_part("image", np.zeros((2, 2), np.int64)),
    "image too large": in_part("image", np.zeros((3, 2), np.uint8)),
    "no image": in_part("image", None),
    "arm without joints": in_part("arm", {"grip": 0}),
    "arm no dict": in_part("arm", 3),
    "grip as float": in_part("arm", {"joints": np.zeros((2, 2), np.float32), "grip": 1.0}),
    "grip out of range": in_part("arm", {"joints": np.zeros((2, 2), np.float32), "grip": 7}),
    **{
        f"terminated {name}": sends(terminated=value)
        for name, value in {
            "1": 1,
            "0": 0,
            "numpy True": np.True_,
            "numpy False": np.False_,
            "array of one": np.array([True]),
            "2": 2,
            "-1": -1,
            "None": None,
            "str": "False",
            "1.0": 1.0,
            "array of two": np.array([False, False]),
        }.items()
    },
    "truncated None": sends(truncated=None),
    "truncated 1": sends(truncated=1),
    "both ends": sends(terminated=True, truncated=True),
    "info that cannot be sent": sends(info={"f": lambda: 0, "file": (x for x in ()), "huge": np.zeros(10_000_000)}),
}


class Sends(gym.Env[Any, int]):
    """Environment 1 sends `fault` once, at its step number `at` (from 0); before and after, and in others, all is well.

    obs = (environment, step) / 100, reward 1; `parts`: a dict with an image and an arm. Episodes of `length` steps.
    """

    def __init__(
        self, fault: str = "none", at: int = 5, length: int = 1000, parts: bool = False, at_reset: bool = False
    ) -> None:
        box = spaces.Box(-1.0, 1.0, (2,), np.float32)
        arm = spaces.Dict({"joints": spaces.Box(-9.0, 9.0, (2, 2), np.float32), "grip": spaces.Discrete(3)})
        image = spaces.Box(0, 255, (2, 2), np.uint8)
        self.observation_space = spaces.Dict({"image": image, "arm": arm}) if parts else box
        self.action_space = spaces.Discrete(2)
        self.fault, self.at, self.length, self.at_reset = FAULTS[fault], at, length, at_reset
        self.parts = parts
        self.done = 0

    def _obs(self) -> Any:
        numbers = np.array([self.env, self.steps], np.float32) / 100
        if not self.parts:
            return numbers
        joints = np.stack([numbers, -numbers])
        return {"image": np.full((2, 2), self.steps % 256, np.uint8), "arm": {"joints": joints, "grip": self.steps % 3}}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.env, self.episode = place_of(seed)
        self.steps = 0
        answer = {"obs": self._obs(), "info": {}}
        return tuple(self.fault(answer)) if self.at_reset and self.env == FAULTY_ENV else tuple(answer.values())

    def step(self, action: int) -> Any:
        self.steps += 1
        faulty = self.env == FAULTY_ENV and self.done == self.at and not self.at_reset
        self.done += 1
        info = {f"of step {self.steps}": object()} if self.steps % 2 else {}
        answer = {"obs": self._obs(), "reward": 1.0, "terminated": False, "truncated": False, "info": info}
        answer["truncated"] = self.steps == self.length
        if not faulty:
            return tuple(answer.values())
        sent = self.fault(answer)
        return None if sent is None else tuple(sent)


def fault_config(
    fault: str, *, at: int = 5, vectorization: str = "sync", nonfinite: str = "stop", **kwargs: Any
) -> Any:
    """Two copies of `Sends`."""
    kwargs = {"fault": fault, "at": at, **kwargs}
    return EnvConfig("faulty_envs:Sends", kwargs=kwargs, num_envs=2, vectorization=vectorization, nonfinite=nonfinite)


def agent_in(name: str, **overrides: Any) -> Agent:
    """As `small_agent`, in two copies of a class of this module."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return Agent(f"faulty_envs:{name}", seed=SEED, overrides={**SMALL, "policy.image_encoder": "flat", **dotted})


class Writes(gym.Env[np.ndarray, Any]):
    """Logs the actions that it receives, and then overwrites them in place where they are arrays."""

    ACTION_SPACES: ClassVar = {
        "box": spaces.Box(-100.0, 100.0, (2,), np.float32),
        "multi": spaces.MultiDiscrete([3, 4]),
        "dict": spaces.Dict({"arm": spaces.Box(-100.0, 100.0, (2,), np.float32), "keys": spaces.MultiBinary(3)}),
    }

    def __init__(self, actions: str) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.action_space = self.ACTION_SPACES[actions]
        self.log: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.ones(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        parts = list(action.values()) if isinstance(action, dict) else [action]
        self.log.append(np.concatenate([np.array(part, np.float64).ravel() for part in parts]))
        for part in parts:
            part[...] = 1
        return np.ones(2, np.float32), 1.0, False, False, {}


class Masked(gym.Env[np.ndarray, Any]):
    """Its mask is a function of its observation; an action that it rules out is an error.

    Args:
        actions: 3 for Discrete(3), or a list for MultiDiscrete, of choices of three or more.
        every: sends a mask with every so many steps; with the others, everything is allowed.
        closes: which of its observations, counted from 0 over all episodes, comes with a mask that allows nothing.
        as_tuple: MultiDiscrete: the mask is a tuple of the choices' masks instead of one row.
    """

    def __init__(
        self, actions: int | list[int] = 3, every: int = 1, closes: int | None = None, as_tuple: bool = False
    ) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.sizes = [actions] if isinstance(actions, int) else actions
        self.action_space = spaces.Discrete(actions) if isinstance(actions, int) else spaces.MultiDiscrete(actions)
        self.every, self.closes, self.as_tuple = every, closes, as_tuple
        self.done = -1

    def _sent(self, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.done += 1
        obs = self.np_random.random(2, np.float32)
        obs[1] = self.done % self.every == 0
        self.allowed = mask_of(obs, self.sizes)
        if self.done == self.closes:
            self.allowed[:] = False
        if not obs[1]:
            return obs, {}
        heads = tuple(np.split(self.allowed.astype(np.int8), np.cumsum(self.sizes)[:-1]))
        return obs, {"action_mask": heads if self.as_tuple else np.concatenate(heads)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._sent()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        chosen = np.cumsum([0, *self.sizes[:-1]]) + np.ravel(action)
        if not self.allowed[chosen].all():
            raise AssertionError(f"{action} is ruled out by {self.allowed}")
        self.steps += 1
        obs, info = self._sent()
        over = self.np_random.random() < 0.2
        return obs, 1.0, over, not over and self.steps == 6, info


def mask_of(obs: np.ndarray, sizes: list[int]) -> np.ndarray:
    """What `Masked` allows after its observations, `[*, Σ sizes]` bool, for choices of three actions or more.

    The first number, between 0 and 1, is one of the seven ways to allow some of three; action k is like action k mod 3.
    Where the second is 0, no mask was sent.
    """
    ways = 1 + (obs[..., :1] * np.float32(6.99)).astype(np.int64)
    kind = np.concatenate([np.arange(size) % 3 for size in sizes])
    return ((ways >> kind) & 1).astype(bool) | (obs[..., 1:] == 0)


class Outside(gym.Env[np.ndarray, int]):
    """Always shows (0, 2), where 0 to 1 is declared."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def _obs(self) -> np.ndarray:
        return np.array([0.0, 2.0], np.float32)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        return self._obs(), 1.0, False, False, {}


class Bytes(Outside):
    """Shows images of bytes, all of them the number of the step, where floats from 0 to 1 are declared."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0.0, 1.0, (1, 8, 8), np.float32)

    def _obs(self) -> np.ndarray:
        return np.full((1, 8, 8), self.steps, np.uint8)


class Takes(Outside):
    """Takes any kwargs and remembers with what it was made; shows numbers in bounds, with reward 1."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        Takes.made.append(kwargs)

    def _obs(self) -> np.ndarray:
        return np.array([0.0, 1.0], np.float32)


class TakesNothing(Takes):
    """Takes no kwargs."""

    def __init__(self) -> None:
        super().__init__()


class Adds(gym.Wrapper[Any, Any, Any, Any]):
    """Adds to the reward."""

    def __init__(self, env: gym.Env[Any, Any], much: float) -> None:
        super().__init__(env)
        self.much = much

    def step(self, action: Any) -> Any:
        obs, reward, *rest = self.env.step(action)
        return obs, float(reward) + self.much, *rest


class Doubles(gym.Wrapper[Any, Any, Any, Any]):
    """Doubles the reward."""

    def step(self, action: Any) -> Any:
        obs, reward, *rest = self.env.step(action)
        return obs, 2 * float(reward), *rest


if "faulty/Takes-v0" not in gym.registry:
    gym.register("faulty/Takes-v0", entry_point=Takes, disable_env_checker=True)


class CannotBeClosed(Takes):
    """Raises when it is closed."""

    def close(self) -> None:
        raise RuntimeError("viewer gone")


class Lists(Takes):
    """Sends a list where its space has a tuple; episodes of three steps."""

    observation_space = spaces.Tuple((spaces.Box(0.0, 9.0, (2,)), spaces.Discrete(3)))

    def __init__(self) -> None:
        super().__init__()
        self.observation_space, self.steps = type(self).observation_space, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.steps = 0
        return [np.zeros(2, np.float32), 1], {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return [np.full(2, self.steps, np.float32), 1], 0.0, False, self.steps == 3, {}


class Differentiable(Takes):
    """Sends what PyTorch would differentiate."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return torch.zeros(2, requires_grad=True), {}


class Choices(Takes):
    """Takes two choices, of two and of three."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.MultiDiscrete([2, 3])
