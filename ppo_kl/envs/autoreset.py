"""One view of every Gymnasium vector environment: the transitions that really happened, whatever its autoreset mode.

- SAME_STEP: the step that ends an episode answers the next one's first observation; the last lies in `final_obs`.
- NEXT_STEP: the step after the end only resets; its action is ignored, so its row is marked as no transition.
- DISABLED: nothing resets by itself; we do, as part of the step that ended the episode.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from ppo_kl.errors import ConfigError

Array = np.ndarray[Any, Any]


class Step(NamedTuple):
    """What one step of N environments answered."""

    obs: Array
    """What to act on next, `[N, *obs]`; the caller's own copy."""
    reward: Array
    """`[N]`."""
    terminated: Array
    """`[N]` bool."""
    truncated: Array
    """`[N]` bool; never with `terminated`."""
    valid: Array
    """`[N]` bool; False where the step only reset an environment."""
    final_obs: dict[int, Array]
    """The last observation of each episode that ended here, by environment."""


class Environments:
    """N environments behind one interface.

    Args:
        env: a Gymnasium vector environment that declares its autoreset mode.
        reset_seed: given to the first reset; none where every environment seeds its own episodes.

    Raises:
        ConfigError: the environment does not say how it resets.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], reset_seed: int | None = None) -> None:
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ConfigError(
                f"{env}: metadata['autoreset_mode'] is {mode!r}; a vector environment must declare its AutoresetMode, "
                "because guessing it wrong puts steps into the data that never happened"
            )
        self.env = env
        self.mode = mode
        self.num_envs = env.num_envs
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self.episodes_begun = np.zeros(self.num_envs, np.int64)
        self._reset_seed = reset_seed
        self._only_resets = np.zeros(self.num_envs, bool)

    def reset(self) -> Array:
        """Begin an episode everywhere; the first observations, `[N, *obs]`."""
        obs, _ = self.env.reset(seed=self._reset_seed)
        self.episodes_begun += 1
        self._only_resets[:] = False
        return np.array(obs)

    def step(self, action: Any) -> Step:
        """Step every environment; `action` is `[N, ...]`, or a dict or tuple of such, as the action space has it."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        obs, reward = np.array(obs), np.array(reward, np.float64)
        terminated = np.array(terminated, bool)
        truncated = np.array(truncated, bool) & ~terminated
        valid = ~self._only_resets
        done = (terminated | truncated) & valid
        ended = np.flatnonzero(done)
        begun = done
        if self.mode is AutoresetMode.SAME_STEP:
            final_obs = {int(i): np.array(info["final_obs"][i]) for i in ended}
        else:
            final_obs = {int(i): obs[i].copy() for i in ended}
        if self.mode is AutoresetMode.NEXT_STEP:
            begun, self._only_resets = self._only_resets, done
        elif self.mode is AutoresetMode.DISABLED and len(ended):
            obs = np.array(self.env.reset(options={"reset_mask": done})[0])
        self.episodes_begun += begun
        return Step(obs, reward, terminated, truncated, valid, final_obs)

    def close(self) -> None:
        """Close the environments and their processes; processes that are gone already are closed."""
        with contextlib.suppress(OSError, EOFError):
            self.env.close()
