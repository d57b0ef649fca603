"""Atari through ale-py's own vector environment: its preprocessing, our returns.

A lost life may count as the end of an episode for the learner (`life_loss_info`), while the game goes on; what is
logged is the return of whole games, of rewards as the game gives them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from ppo_kl.errors import ConfigError
from ppo_kl.observations import Array

DEFAULTS = {"reward_clipping": False, "autoreset_mode": "SameStep", "repeat_action_probability": 0.0}
"""Where ours differ from ale-py's: unclipped rewards, no sticky actions (as in the papers), no rows that only reset."""


def is_atari(env_id: str) -> bool:
    """Whether it is one of ale-py's environments."""
    return env_id.startswith("ALE/")


def atari_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What ale-py's vector environment is made with.

    Raises:
        ConfigError: rewards would be clipped before anybody has seen them.
    """
    if kwargs.get("reward_clipping", False):
        raise ConfigError(
            "env.kwargs.reward_clipping=True: logged returns would be of clipped rewards; set env.reward_limit=1 "
            "instead, which clips what the learner sees and nothing else",
            "kwargs",
        )
    if kwargs.get("autoreset_mode", "SameStep") != "SameStep":
        raise ConfigError(
            f"env.kwargs.autoreset_mode={kwargs['autoreset_mode']!r}: allowed: SameStep, where the end of a game can "
            "be told from that of a life",
            "kwargs",
        )
    return DEFAULTS | kwargs


class WholeGames(VectorWrapper[Any, Any, Any]):
    """Says in `info["episode_over"]` which games ended; a terminated episode may have been a single life."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self._frame = np.zeros(env.num_envs, np.int64)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a game everywhere."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._frame = np.array(info["episode_frame_number"], np.int64)
        return obs, info

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """Step every game."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        frame = np.array(info["episode_frame_number"], np.int64)
        # Frames are counted from the beginning of a game, so that they run backwards only where one began.
        over = (terminated | truncated) & (frame <= self._frame)
        self._frame = frame
        return obs, reward, terminated, truncated, {**info, "episode_over": over}
