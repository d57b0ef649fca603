"""From settings to one environment: found by its name, made, wrapped."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import warnings
from typing import Any

import gymnasium as gym

from ppo_kl.config.checked import nearest
from ppo_kl.config.env import EnvConfig
from ppo_kl.envs.atari import is_atari
from ppo_kl.errors import ConfigError, needs_extra
from ppo_kl.imports import attribute_named, class_named, module_of

EXTRAS = {"envs.mujoco": "mujoco", "envs.box2d": "box2d", "ale_py": "atari", "moviepy": "video"}
"""What is missing, by a word in the entry point or in the error -> the extra that installs it."""

OURS = {
    "NormalizeObservation": "env.normalize_obs",
    "NormalizeReward": "env.normalize_reward",
    "RecordEpisodeStatistics": "the log's rollout/return_mean and rollout/length_mean",
}
"""Wrappers that keep what a checkpoint must hold -> what does it here."""
_NOT_ITS_ARGUMENTS = re.compile(
    r"unexpected keyword argument|required (positional|keyword-only) argument|takes .* argument"
)


def build(config: EnvConfig, video: str | None = "") -> gym.Env[Any, Any]:
    """One environment with its wrappers.

    Args:
        config: which, and made with what.
        video: what the names of RecordVideo's files get behind their prefix; none: it has no effect, as in all copies
            but one, which would share its files.

    Raises:
        ConfigError: there is no such environment or wrapper, what it needs is not installed, or it does not take these
            kwargs.
    """
    prepare(config.id)
    own = attribute_named(config.id, "env.id") if module_of(config.id) else None
    try:
        with warnings.catch_warnings():
            # Box2D's generated code warns of itself when it is imported.
            warnings.filterwarnings("ignore", message=".*[Ss]wig", category=DeprecationWarning)
            if isinstance(own, type) and issubclass(own, gym.Env):
                env = own(**config.kwargs)
            else:
                # Our own checks look at every step, Gymnasium's at the first.
                env = gym.make(config.id, disable_env_checker=True, **config.kwargs)
        for name, kwargs in config.wrappers.items():
            env = _wrapped(env, name, kwargs, video)
    except (gym.error.Error, ImportError, TypeError) as error:
        if isinstance(error, (ImportError, TypeError)) and not _is_of_settings(config, error):
            raise  # a bug of the environment's, which is told with its traceback
        raise cannot_make(config, error) from error
    for name in ("observation_space", "action_space"):
        if not isinstance(getattr(env, name, None), gym.Space):
            raise ConfigError(f"env.id={config.id!r}: the environment has no {name}; set it in __init__", "id")
    return env


def _wrapped(env: gym.Env[Any, Any], name: str, kwargs: dict[str, Any], video: str | None) -> gym.Env[Any, Any]:
    if name == "RecordVideo":
        if video is None:
            return env
        kwargs = {**kwargs, "name_prefix": f"{kwargs.get('name_prefix', 'rl-video')}{video}"}
        first = kwargs.pop("first", None)
        if first is not None:
            kwargs["episode_trigger"] = lambda episode: episode < first
    wrapper = wrapper_named(name)
    try:
        return wrapper(env, **{key: _as_tuple(value) for key, value in kwargs.items()})
    except (TypeError, ValueError, AssertionError) as error:
        if module_of(name):
            raise  # one's own wrapper may have a bug, which is told with its traceback
        raise ConfigError(f"env.wrappers.{name}: {error}; it was put around {env} with {kwargs}", "wrappers") from error


def _as_tuple(value: Any) -> Any:
    """A list of a YAML file as what Gymnasium's wrappers want: shapes are tuples."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def prepare(env_id: str) -> None:
    """What must be done in every process before an environment of this id is made."""
    if is_atari(env_id):
        try:
            gym.register_envs(importlib.import_module("ale_py"))
        except ImportError as error:
            raise ConfigError(f"env.id={env_id!r}: {needs_extra('atari')} ({error})", "id") from error
    spec = gym.registry.get(env_id)
    if (spec is not None and "mujoco" in str(spec.entry_point)) or "mujoco" in sys.modules:
        _quiet_mujoco()


def _quiet_mujoco() -> None:
    """Keep MuJoCo's note on `settotalmass` off the terminal, and out of a file that it makes in the working folder."""
    try:
        mujoco = importlib.import_module("mujoco")
    except ImportError:
        return  # `gym.make` says so, with the extra that installs it
    if mujoco.get_mju_user_warning() is None:
        log = logging.getLogger("mujoco")
        mujoco.set_mju_user_warning(lambda message: log.debug("%s", message))


def wrapper_named(name: str) -> type[gym.Wrapper[Any, Any, Any, Any]]:
    """A wrapper of Gymnasium's, or one's own by package.module:Class."""
    if name in OURS:
        raise ConfigError(
            f"env.wrappers.{name}: its statistics would be lost with every checkpoint and differ between copies; use "
            f"{OURS[name]}",
            "wrappers",
        )
    if module_of(name):
        return class_named(name, gym.Wrapper, f"env.wrappers.{name}")
    found = getattr(gym.wrappers, name) if name in gym.wrappers.__all__ else None
    if not (isinstance(found, type) and issubclass(found, gym.Wrapper)):
        raise ConfigError(
            f"env.wrappers.{name}: no wrapper of this name{nearest(name, gym.wrappers.__all__)}", "wrappers"
        )
    return found


def _is_of_settings(config: EnvConfig, error: Exception) -> bool:
    """Whether what was asked for is wrong, and not the environment's own code."""
    if isinstance(error, TypeError):
        return _NOT_ITS_ARGUMENTS.search(str(error)) is not None
    return _extra_for(config, error) is not None


def _extra_for(config: EnvConfig, error: Exception) -> str | None:
    spec = gym.registry.get(config.id)
    clues = f"{spec.entry_point if spec else ''} {error}".lower()
    return next((name for word, name in EXTRAS.items() if word in clues), None)


def cannot_make(config: EnvConfig, error: Exception) -> ConfigError:
    """The reason as a sentence that says what to install or to change."""
    extra, what = _extra_for(config, error), str(error)
    if isinstance(error, (gym.error.DependencyNotInstalled, ImportError)) and extra is not None:
        what = f"{needs_extra(extra)} ({error})"
    elif isinstance(error, TypeError):
        made = {"env.kwargs": config.kwargs, "env.wrappers": config.wrappers}
        what = f"{error}; it was made with {made}"
    elif os.sep in config.id or "-v" not in config.id:
        what = f"{error}; an id of your own: package.module:Id"
    return ConfigError(f"env.id={config.id!r} ({config.vectorization}): {what}", "id")
