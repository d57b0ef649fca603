"""Runs of a few iterations with everything on that has a memory, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from toy_envs import SMALL, env_config, without_times

from ppo_kl import checkpoint
from ppo_kl.config import TrainConfig
from ppo_kl.load import load_config

STEPS = 2 * 32
"""Of one iteration."""
EVERYTHING_ON = {"env.normalize_obs": True, "env.normalize_reward": True, "training.lr_schedule": "linear"}


def config(
    runs: Path, env: str = "CartPole-v1", objective: str = "kl_adaptive", iterations: int = 4, **changes: Any
) -> TrainConfig:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    own = {"runs_dir": str(runs), "total_steps": iterations * STEPS, "training.num_steps": 32, "seed": 7}
    own["training.minibatch_size"] = 32
    return load_config(
        env=env_config(env).id, objective=objective, overrides={**SMALL, **EVERYTHING_ON, **own, **dotted}
    )


class StopAfter:
    """A callback that ends the part of the run in which iteration `number` is done."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_iteration(self, state: Any) -> bool:
        return state.number != self.number


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    """Names of what is not the same, bit for bit."""
    if isinstance(a, dict):
        alone = [f"{name}.{key}" for key in a.keys() ^ b.keys()]
        return alone + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{name}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{name}.{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [name]
    return [] if a == b else [name]


def last_state(folder: Path) -> dict[str, Any]:
    return checkpoint.load(checkpoint.newest(folder / "checkpoints"))


def rows(folder: Path) -> list[dict[str, float]]:
    return [without_times(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metadata.json").read_text())


class Everywhere(gym.Env[Any, Any]):
    """Dict observations and Dict actions; where it goes depends on both and on its own random numbers."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "at": spaces.Box(-9.0, 9.0, (2,)),
                "room": spaces.Discrete(3),
                "seen": spaces.Box(0, 255, (8, 8, 1), np.uint8),
            }
        )
        self.action_space = spaces.Dict({"go": spaces.Box(-1.0, 1.0, (2,)), "door": spaces.Discrete(3, start=1)})

    def _obs(self) -> dict[str, Any]:
        seen = np.full((8, 8, 1), 10 * self.room, np.uint8)
        return {"at": self.at.copy(), "room": self.room, "seen": seen}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at, self.room, self.steps = self.np_random.normal(size=2).astype(np.float32), 0, 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.at = np.float32(0.9 * self.at + action["go"] + 0.1 * self.np_random.normal(size=2))
        self.room = int(action["door"]) - 1
        return self._obs(), float(self.at.sum() + self.room), self.np_random.random() < 0.03, self.steps == 70, {}


RUNS = {
    "Discrete, KL": ("CartPole-v1", "kl_adaptive", {}),
    "Discrete, clip, processes": ("CartPole-v1", "clip", {"env__vectorization": "async"}),
    "Box, clip": ("Pendulum-v1", "clip", {"policy__action_transform": "rescale"}),
    "Box, KL, processes": ("Pendulum-v1", "kl_adaptive", {"env__vectorization": "async"}),
    "Box, KL, one worker": ("Pendulum-v1", "kl_adaptive", {"runtime__workers": 1}),
    "a learning rate of its own": ("CartPole-v1", "kl_pi", {"training__lr_schedule": "kl_adaptive"}),
    "memory": ("CartPole-v1", "kl_adaptive", {"policy__memory": "lstm", "policy__trunk": "shared"}),
    "masks": ("resume/Partial-v0", "kl_adaptive", {}),
    "masks, one worker": ("resume/Partial-v0", "kl_adaptive", {"runtime__workers": 1}),
    "Dict": ("resume/Everywhere-v0", "kl_adaptive", {"policy__image_encoder": "flat"}),
    "Dict, one worker": (
        "resume/Everywhere-v0",
        "kl_adaptive",
        {"policy__image_encoder": "flat", "runtime__workers": 1},
    ),
    "wrappers": ("CartPole-v1", "clip", {"env__wrappers__FrameStackObservation__stack_size": 3}),
    "an episode without an end": ("toy/Endless-v0", "kl_adaptive", {}),
}
