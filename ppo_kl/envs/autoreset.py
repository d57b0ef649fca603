"""One view of every Gymnasium vector environment: the transitions that really happened, whatever its autoreset mode.

- SAME_STEP: the step that ends an episode answers the next one's first observation; the last lies in `final_obs`.
- NEXT_STEP: the step after the end only resets; its action is ignored, so its row is marked as no transition.
- DISABLED: nothing resets by itself; we do, as part of the step that ended the episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from ppo_kl.envs.action_mask import allows_something, head_sizes
from ppo_kl.envs.faults import close, raised
from ppo_kl.errors import ConfigError, EnvDataError, PPOKLError
from ppo_kl.observations import Array, each_part, over_parts, parts_of, read


class Step(NamedTuple):
    """What one step of N environments answered."""

    obs: Any
    """What to act on next, `[N, *obs]`, by part where the space has several; the caller's own copy."""
    reward: Array
    """`[N]`."""
    terminated: Array
    """`[N]` bool."""
    truncated: Array
    """`[N]` bool; never with `terminated`."""
    valid: Array
    """`[N]` bool; False where the step only reset an environment."""
    final_obs: dict[int, Any]
    """The last observation of each episode that ended here, by environment."""
    over: Array
    """`[N]` bool; where an episode ended whose return counts: of a game, not of one of its lives."""
    begun: Array
    """`[N]` bool; where `obs` begins an episode. As `valid` and `over`, not to be written into."""
    action_mask: Array | None
    """Which actions may be taken next, `[N, M]` bool; none where no environment says."""
    nonfinite: int
    """Episodes that were cut here because an environment sent something that is not finite."""


class Environments:
    """N environments behind one interface.

    Args:
        env: a Gymnasium vector environment that declares its autoreset mode. What it answers is checked and copied, but
            for one that says by `answers_fit` that its arrays are what its spaces promise, and new with every step.
        reset_seed: given to the first reset; none where every environment seeds its own episodes.

    Raises:
        ConfigError: the environment does not say how it resets.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], reset_seed: Any = None) -> None:
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
        self.parts = parts_of(self.observation_space)
        self.action_mask: Array | None = None
        self._choices = head_sizes(self.action_space)
        self.episodes_begun = np.zeros(self.num_envs, np.int64)
        self._reset_seed = reset_seed
        self._only_resets = np.zeros(self.num_envs, bool)
        self._some_only_reset = False
        self._fits = bool(getattr(env, "answers_fit", False))
        self._plain = len(self.parts) == 1 and self.parts[0].path == () and self.parts[0].kind != "index"
        # What most steps answer; they share it, so nobody may write into it.
        self._none, self._all = np.zeros(self.num_envs, bool), np.ones(self.num_envs, bool)
        self.steps_done = 0

    def reset(self) -> Any:
        """Begin an episode everywhere; the first observations, `[N, *obs]`, as `Step.obs`, with `action_mask` set."""
        obs, info = self._called("reset", seed=self._reset_seed)
        self.episodes_begun += 1
        self._only_resets[:] = False
        self._some_only_reset = False
        self.action_mask = self._mask_in(info)
        return self._copied(obs)

    def step(self, action: Any) -> Step:
        """Step every environment; `action` is `[N, ...]`, or a dict or tuple of such, as the action space has it."""
        sent, reward, terminated, truncated, info = self._called("step", action)
        self.steps_done += 1
        if self._fits:
            obs = sent if self._plain else read(self.parts, sent)
        else:
            obs, reward = self._copied(sent), self._of_each("reward", reward, np.float64)
            terminated = self._of_each("terminated", terminated, bool)
            truncated = self._of_each("truncated", truncated, bool)
        if np.count_nonzero(terminated) + np.count_nonzero(truncated) or self._some_only_reset or info:
            return self._rare_step(obs, reward, terminated, truncated & ~terminated, info)
        self.action_mask = None
        none = self._none
        return Step(obs, reward, terminated, truncated, self._all, {}, none, none, None, 0)

    def _rare_step(self, obs: Any, reward: Array, terminated: Array, truncated: Array, info: dict[str, Any]) -> Step:
        """A step in which an episode ended or began, or an environment said more than it must."""
        valid = ~self._only_resets
        done = (terminated | truncated) & valid
        ended = np.flatnonzero(done)
        begun = done
        # Only with SAME_STEP does the mask of an episode that ended belong to the next one.
        self.action_mask = self._mask_in(info, unused=done & (self.mode is not AutoresetMode.SAME_STEP))
        if self.mode is AutoresetMode.SAME_STEP:
            final_obs = {int(i): self._last_obs(info, int(i)) for i in ended}
        else:
            final_obs = {int(i): over_parts(lambda x, i=i: x[i].copy(), obs) for i in ended}
        if self.mode is AutoresetMode.NEXT_STEP:
            begun, self._only_resets = self._only_resets, done
            self._some_only_reset = len(ended) > 0
        elif self.mode is AutoresetMode.DISABLED and len(ended):
            sent, at_reset = self._called("reset", options={"reset_mask": done})
            obs = self._copied(sent)
            self.action_mask = _both(self.action_mask, self._mask_in(at_reset, unused=~done))
        self.episodes_begun += begun
        cut = info.get("final_info", info).get("nonfinite")
        return Step(
            obs,
            reward,
            terminated,
            truncated,
            valid,
            final_obs,
            info.get("episode_over", done) & done,
            begun.copy(),
            self.action_mask,
            0 if cut is None else int(np.sum(cut)),
        )

    @property
    def replayable(self) -> bool:
        """Whether others like these can be brought to where they stand; see `ppo_kl.envs.snapshot`."""
        return self.mode is AutoresetMode.SAME_STEP and hasattr(self.env, "replay")

    def replay(self, actions: Sequence[Sequence[Any]]) -> tuple[Any, Array, Array]:
        """Begin an episode everywhere and go on by the actions of each environment; sets `action_mask` as `reset` does.

        Args:
            actions: of the running episode of each environment, as that takes them.

        Returns:
            Observations, as `reset`; the returns so far, `[N]`; whether an episode is over after all, `[N]` bool.
        """
        obs, returns, over, info = self._called("replay", actions)
        self.episodes_begun += 1
        self.action_mask = self._mask_in(info)
        return self._copied(obs), returns, over

    def _called(self, call: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self.env, call)(*args, **kwargs)
        except PPOKLError:
            raise
        except Exception as error:
            raise raised(str(self.env), f"{call} after step {self.steps_done}", error) from error

    def _copied(self, sent: Any, *, single: bool = False) -> Any:
        """Observations as arrays of our own, `[N, *obs]`, or `[*obs]` of a single environment."""
        try:
            obs = np.array(sent) if self._plain else over_parts(np.array, read(self.parts, sent))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._fault(f"the observations are {sent!r} ({type(error).__name__}: {error})") from error
        for part, (_, x) in zip(self.parts, each_part(obs), strict=True):
            expected = part.shape if single else (self.num_envs, *part.shape)
            if x.shape != expected or x.dtype.kind not in "biuf":
                called = f"observation {part.key!r}" if part.path else "observation"
                raise self._fault(f"{called} has shape {x.shape} and dtype {x.dtype}, expected {expected} of numbers")
        return obs

    def _last_obs(self, info: dict[str, Any], i: int) -> Any:
        if "final_obs" not in info:
            raise self._fault(f"an episode of environment {i} ended and info has no 'final_obs', as SAME_STEP demands")
        last = info["final_obs"][i]
        return last if self._fits and self._plain else self._copied(last, single=True)

    def _of_each(self, name: str, sent: Any, dtype: Any) -> Array:
        try:
            values = np.array(sent, dtype)
        except (TypeError, ValueError) as error:
            raise self._fault(f"{name} is {sent!r} ({error})") from error
        if values.shape != (self.num_envs,):
            raise self._fault(f"{name} has shape {values.shape}, expected {(self.num_envs,)}")
        return values

    def _fault(self, what: str) -> EnvDataError:
        return EnvDataError(
            f"{self.env} sent data that cannot be trained on after step {self.steps_done}: {what}; no update was made "
            "with it, weights and checkpoints are as before; mend the environment"
        )

    def _mask_in(self, info: dict[str, Any], unused: Array | bool = False) -> Array | None:
        """The masks of all environments, `[N, M]`; one that sends none, or is not used, allows everything."""
        if info.get("action_mask") is None or isinstance(self.action_space, spaces.Box):
            return None
        masks: Array = np.asarray(info["action_mask"])
        if masks.shape != (self.num_envs, sum(self._choices)):
            raise EnvDataError(
                f"info['action_mask'] of {self.env} has shape {masks.shape}, expected "
                f"{(self.num_envs, sum(self._choices))}; no update was made with it"
            )
        sent = info.get("_action_mask", np.ones(self.num_envs, bool)) & ~np.asarray(unused)
        masks = np.where(sent[:, None], masks.astype(bool), True)
        allowed = allows_something(masks, self._choices)
        if not allowed.all():
            i = int(np.argmin(allowed))
            raise EnvDataError(
                f"action_mask of environment {i} allows no action after step {self.steps_done}; no update was made "
                "with it; an environment in which nothing can be done should end the episode"
            )
        return masks

    @property
    def closed(self) -> bool:
        """Whether they were closed, by us or by an error."""
        return bool(getattr(self.env, "closed", False))

    def close(self) -> None:
        """Close the environments and their processes; processes that are gone already are closed."""
        close(self.env, str(self.env))


def _both(first: Array | None, other: Array | None) -> Array | None:
    """What both masks allow; none allows everything."""
    if first is None or other is None:
        return first if other is None else other
    return np.asarray(first & other)
