"""The agent: policy, objective, normalisers and optimiser in one object that acts, learns, saves and loads."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppo_kl import checkpoint
from ppo_kl.batch import State
from ppo_kl.config import EvaluationConfig, ObjectiveConfig, TrainConfig
from ppo_kl.envs.action_mask import allows_something
from ppo_kl.envs.autoreset import Environments
from ppo_kl.envs.make import EVALUATION, make_vector_env
from ppo_kl.envs.snapshot import Snapshot
from ppo_kl.errors import CheckpointError, ConfigError, DivergedError, EnvDataError, EnvWarning, EnvWorkerError
from ppo_kl.load import from_yaml, load_config, to_yaml
from ppo_kl.objectives.objective import Objective
from ppo_kl.observations import Array, describe_parts, each_part, from_parts_description, over_parts, read, stored
from ppo_kl.policies.custom import make_policy
from ppo_kl.policies.normalize import ObservationNormalizer, RewardScaler
from ppo_kl.policies.spaces import describe, family_of, from_description
from ppo_kl.training.collector import Collector
from ppo_kl.training.compile_choice import Choice, choose
from ppo_kl.training.evaluation import Evaluation, evaluate, evaluated
from ppo_kl.training.init_from import init_from
from ppo_kl.training.iteration import Callback, Iteration, Outcome, all_go_on, iterate
from ppo_kl.training.kl_stop import require_threshold
from ppo_kl.training.learner import Learner

STREAMS = {"initialisation": 0, "action": 1, "minibatch": 2, "evaluation": 3}
"""The run's random streams beside the environments', each its own child of the run's seed."""


class Agent:
    """A PPO agent whose objective is a part you swap.

        agent = Agent("CartPole-v1", objective="kl_adaptive")
        agent.learn(100_000)
        agent.save("agent.pt")
        action = Agent.load("agent.pt").act(obs)

    Args:
        env: a Gymnasium id, a name in configs/env, or a whole `TrainConfig`.
        objective: a name in configs/objective or the objective's config; none: the configuration's.
        seed: every random stream is derived from it; none: the configuration's.
        overrides: dotted key -> value, as {"training.gamma": 0.98}.

    Raises:
        ConfigError: something is out of range, or there is no such environment, action space or device.
    """

    _collector: Collector | None

    def __init__(
        self,
        env: str | TrainConfig = "CartPole-v1",
        objective: str | ObjectiveConfig | None = None,
        *,
        seed: int | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        changes = {**({} if seed is None else {"seed": seed}), **(overrides or {})}
        if isinstance(env, str):
            config = load_config(env=env, objective=objective, overrides=changes)
        elif objective is not None or changes:
            raise ConfigError(
                "Agent: beside a whole TrainConfig, objective, seed and overrides have no place; set them in it"
            )
        else:
            config = env
        resolve_device(config.runtime.device)  # refused here, before any environment is made
        require_threshold(config.training.kl_stop, config.objective)
        envs = make_vector_env(config.env, config.seed, workers=config.runtime.num_workers)
        try:
            self._build(config, _spaces_of(envs, config))
            if config.init_from is not None:
                init_from(self, Path(config.init_from))
        except BaseException:
            envs.close()
            raise
        self._collector = self._collect_from(envs)

    def _build(self, config: TrainConfig, spaces: dict[str, Any]) -> None:
        """Everything but the environments, which an agent that only acts does not need."""
        self.config, self.spaces = config, spaces
        self._config_text = to_yaml(config)  # once: training takes its state down after every iteration
        self.device = resolve_device(config.runtime.device)
        self.family = from_description(spaces["action"])
        self.parts = from_parts_description(spaces["obs"])
        training, env = config.training, config.env
        self.policy = make_policy(self.parts, self.family, config.policy, self._generator("initialisation"))
        self.policy.to(self.device)
        self.recurrent = bool(self.policy.initial_state(1))
        self.objective = Objective(config.objective, num_action_dims=self.family.num_action_dims).to(self.device)
        self.learner = Learner(
            self.policy,
            self.family,
            self.objective,
            training,
            self._generator("minibatch"),
        )
        if config.runtime.cuda_graphs:
            self.learner.replay()
        if config.runtime.compile == "on":
            self.learner.compile()
        self.obs_normalizer = ObservationNormalizer(self.parts, env.normalize_obs).to(self.device)
        self.reward_scaler = RewardScaler(
            env.num_envs, training.gamma, env.reward_offset, env.reward_scale, env.normalize_reward, env.reward_limit
        ).to(self.device)
        self._action_generator = self._generator("action")
        self.steps = self.iterations = 0
        self._collector = None
        self._episodes_begun = [0] * env.num_envs
        self._stood: Snapshot | None = None
        """Where the environments of a checkpoint stood, until they are made."""
        self._begun_anew: str | None = None
        self._memory: State = ()
        self.last100: list[float] = []
        self.best_return: float | None = None
        """Of the evaluations made while it was trained."""

    def _generator(self, stream: str) -> torch.Generator:
        child = np.random.SeedSequence(self.config.seed, spawn_key=(STREAMS[stream],))
        return torch.Generator().manual_seed(int(child.generate_state(1, np.uint64)[0]))

    def _collect_from(self, envs: Environments) -> Collector:
        num_steps = self.config.training.num_steps
        return Collector(envs, self.family, self.obs_normalizer, num_steps, self._action_generator, self.device)

    # --- learning ---------------------------------------------------------------------------------------------------

    def learn(self, total_steps: int, callbacks: Sequence[Callback] = ()) -> Agent:
        """Train for `total_steps` further environment steps (rounded up to whole rollouts), in memory alone.

        What follows a schedule (learning rate, ε, kl_target, a scheduled λ) begins anew and ends with these steps. With
        `runtime.compile: auto` each call weighs anew whether to compile.

        `ppo_kl.train` does the same with a run folder, logs and checkpoints.
        """
        self._weigh_compiling(total_steps)
        for state in self.iterations_until(self.steps + total_steps, since=self.steps):
            if not all_go_on(callbacks, state):
                break
        return self

    def iterations_until(self, total_steps: int, since: int = 0) -> Iterator[Iteration]:
        """One iteration after the other until `total_steps` environment steps are done; schedules begin at `since`."""
        while self.steps < total_steps:
            done = self._iterate((self.steps - since) / (total_steps - since))
            metrics = done.metrics | self._evaluated()
            yield Iteration(self, self.iterations, self.steps, total_steps, metrics, done.histograms, done.seconds)

    def settle(self) -> list[str]:
        """Settle whether to compile, where that is left open, for the rest of the configured steps.

        Returns:
            What was chosen and why, a line; nothing where the configuration says it. Afterwards it does.
        """
        choice = self._weigh_compiling(self.config.total_steps - self.steps)
        if choice is None:
            return []
        chosen: Literal["on", "off"] = "on" if choice.compiled else "off"
        self.config = dataclasses.replace(self.config, runtime=dataclasses.replace(self.config.runtime, compile=chosen))
        self._config_text = to_yaml(self.config)
        return [f"runtime.compile auto: {chosen}: {choice.reason}"]

    def _weigh_compiling(self, num_steps: int) -> Choice | None:
        """Compile if that is left open and pays off in `num_steps` environment steps; none where nothing is open."""
        if self.config.runtime.compile != "auto" or self.learner.compiled is not None:
            return None
        choice = choose(self.learner, self.parts, self.config, num_steps)
        if choice.compiled:
            self.learner.compile()
        return choice

    def _evaluated(self) -> dict[str, float]:
        """What an evaluation says, where one is due; the best is kept in mind."""
        config = self.config.evaluation
        if config.every is None or self.iterations % config.every:
            return {}
        found = self.evaluate(config.episodes, deterministic=not config.stochastic, max_steps=config.max_steps)
        if math.isfinite(found.mean) and (self.best_return is None or found.mean > self.best_return):
            self.best_return = found.mean
        return {"eval/return_mean": found.mean, "eval/return_std": found.std}

    def iterate(self, progress: float = 0.0) -> dict[str, float]:
        """One iteration, see `ppo_kl.training.iteration`; the metrics by tag.

        Args:
            progress: share of training that is done, in [0, 1); moves schedules.

        Raises:
            EnvDataError: an environment sent something that is not finite.
            DivergedError: too many gradient steps in a row were not finite.
        """
        return self._iterate(progress).metrics

    def _iterate(self, progress: float) -> Outcome:
        collector = self._ready_collector()
        outcome = iterate(self, collector, progress)
        self.steps += outcome.steps
        self.iterations += 1
        self.last100 = [*self.last100, *outcome.episodes.returns][-100:]
        self._episodes_begun = collector.envs.episodes_begun.tolist()
        self._memory = collector.state
        if outcome.skipped_in_a_row >= self.config.training.max_skipped_steps:
            raise DivergedError(
                f"loss or gradient was not finite in the last {outcome.skipped_in_a_row} gradient steps "
                f"(training.max_skipped_steps={self.config.training.max_skipped_steps}), at environment step "
                f"{self.steps}; weights and optimiser are as before the first of them; begin a new run with a lower "
                "training.lr, or with another kl_target or clip_eps"
            )
        last100 = {"rollout/return_last100": float(np.mean(self.last100))} if self.last100 else {}
        return outcome._replace(metrics=outcome.metrics | last100)

    def open(self) -> str | None:
        """Make the environments where there are none, and bring them to where they stood in the checkpoint.

        Learning does this by itself; it takes as long as the episodes that were running.

        Returns:
            Why they begin new episodes instead; none where what follows is, bit for bit, what would have followed.

        Raises:
            CheckpointError: the environments are not those that this agent was trained with.
        """
        self._ready_collector()
        return self._begun_anew

    def _ready_collector(self) -> Collector:
        """The collector; made anew where there is none, or an error closed its environments."""
        collector = self._collector
        if collector is not None and not collector.envs.closed:
            self._forget_returns_unless_continued(collector)
            return collector
        self._begun_anew = "there are none in the checkpoint" if any(self._episodes_begun) else None
        collector = None if self._stood is None else self._gone_back_to(self._stood)
        if collector is None:
            collector = self._collect_from(self._environments(self._episodes_begun))
        self._collector, self._stood = collector, None
        self._forget_returns_unless_continued(collector)
        return collector

    def _forget_returns_unless_continued(self, collector: Collector) -> None:
        """Those of episodes that were given up, as by Ctrl-C in a rollout, are not carried into new ones."""
        if not collector.episodes_run:
            self.reward_scaler.running.zero_()

    def _environments(self, first_episode: Sequence[int]) -> Environments:
        config, workers = self.config, self.config.runtime.num_workers
        envs = make_vector_env(config.env, config.seed, first_episode=first_episode, workers=workers)
        if _spaces_of(envs, self.config) != self.spaces:
            envs.close()
            raise CheckpointError(
                f"env.id={self.config.env.id}: spaces {envs.observation_space}, {envs.action_space} are not those "
                f"this agent was trained with ({self.spaces})"
            )
        return envs

    def _gone_back_to(self, stood: Snapshot) -> Collector | None:
        """A collector whose environments stand where they stood, or none, with the reason in a warning."""
        collector = self._collect_from(self._environments([number - 1 for number in self._episodes_begun]))
        try:
            collector.return_to(stood, self._memory)
        except (EnvDataError, EnvWorkerError) as error:
            collector.envs.close()
            self._begun_anew = f"env is not reproducible: resume continues from a fresh episode; {error}"
            warnings.warn(self._begun_anew, EnvWarning, stacklevel=2)
            return None
        except BaseException:
            collector.envs.close()
            raise
        self._begun_anew = None
        return collector

    @property
    def resumes_exactly(self) -> bool:
        """Whether a checkpoint holds where the environments stand, so that what follows it is what would have."""
        return self._ready_collector().envs.replayable

    # --- acting -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def act(
        self,
        obs: Any,
        *,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
        action_mask: Any = None,
        memory: ActingMemory | None = None,
    ) -> Any:
        """The action for one observation or a batch of them, as the environment takes it.

        Args:
            obs: `[*obs]` or `[N, *obs]`, as the environment sends it; a dict or tuple where its space is one.
            deterministic: the most likely action; else one drawn from the policy.
            generator: where to draw from, on the CPU; none: torch's own.
            action_mask: which actions are allowed, `[M]` or `[N, M]` bool, choices side by side.
            memory: of a recurrent agent, from `new_memory`; moved on by this observation.

        Returns:
            One action, or `[N, ...]`.

        Raises:
            ValueError: `obs` has another shape, or a recurrent agent was given no memory.
        """
        seen, single = self._seen(obs)
        to_env = self._act(seen, deterministic, generator, action_mask, memory)
        return _first(to_env) if single else to_env

    def _seen(self, obs: Any) -> tuple[Any, bool]:
        """Observations as sent, by part and with a batch axis, and whether it was a single one."""
        try:
            sent = read(self.parts, obs)
        except (KeyError, IndexError, TypeError) as error:
            keys = ", ".join(part.key for part in self.parts)
            raise ValueError(f"act: obs lacks {error}; expected the parts {keys}") from None
        single = each_part(sent)[0][1].shape == self.parts[0].shape
        for part, (key, x) in zip(self.parts, each_part(sent), strict=True):
            if (x.shape if single else x.shape[1:]) != part.shape:
                called = f"obs {key!r}" if key else "obs"
                raise ValueError(f"act: {called} has shape {x.shape}, expected {part.shape} or (N, {part.shape})")
        return over_parts(lambda x: x[None] if single else x, sent), single

    def _act(
        self,
        obs: Any,
        deterministic: bool,
        generator: torch.Generator | None,
        action_mask: Any,
        memory: ActingMemory | None,
    ) -> Any:
        """Actions for observations by part, `[N, *obs]`, as the environments take them."""
        kept = over_parts(lambda x: torch.as_tensor(x, device=self.device), stored(self.parts, obs))
        seen = self.obs_normalizer(kept)
        state, starts = ((), None) if memory is None else (memory.state, memory.starts)
        if memory is None and self.recurrent:
            raise ValueError(
                "act: this agent is recurrent; make a memory by agent.new_memory() and give it with every obs"
            )
        batch = len(each_part(seen)[0][1])
        if memory is not None and self.recurrent and len(memory.starts) != batch:
            raise ValueError(f"act: the memory is of {len(memory.starts)} streams, obs of {batch}; see new_memory")
        params, state = self.policy.act(seen, state, starts)
        if memory is not None:
            memory.state, memory.starts = state, torch.zeros_like(memory.starts)
        mask = None if action_mask is None else self._mask_of(action_mask, batch)
        if deterministic:
            action = self.family.mode(params, mask)
        elif generator is None:
            action = self.family.build(params, mask).sample()
        else:
            action = self.family.sample(params, generator, mask)
        return self.family.to_env(action)

    def _mask_of(self, action_mask: Any, batch: int) -> Tensor:
        sizes = self.family.mask_sizes
        try:
            mask = np.atleast_2d(np.asarray(action_mask, bool))
        except ValueError:
            mask = np.zeros(0, bool)
        if mask.shape != (batch, sum(sizes)) or not sizes or not allows_something(mask, sizes).all():
            raise ValueError(
                f"act: action_mask {action_mask!r}: expected shape {(batch, sum(sizes))}, choices of {sizes} actions "
                "side by side, each with at least one that is allowed"
            )
        return torch.from_numpy(mask).to(self.device)

    def new_memory(self, num_envs: int = 1) -> ActingMemory:
        """What a recurrent agent remembers of `num_envs` streams of observations, at their beginning."""
        starts = torch.ones(num_envs, dtype=torch.bool, device=self.device)
        return ActingMemory(self.policy.initial_state(num_envs), starts)

    def evaluate(
        self,
        episodes: int = 10,
        *,
        deterministic: bool = True,
        video: str | Path | None = None,
        max_steps: int = EvaluationConfig.max_steps,
    ) -> Evaluation:
        """Whole episodes on environments of their own; changes nothing of the agent, its random streams included.

        Args:
            episodes: how many; for the same number the same ones, so that two evaluations differ by the agent alone.
            deterministic: the most likely actions; else drawn from the policy.
            video: a folder for a video of every episode; one environment then plays them all, which are other ones.
            max_steps: of each environment; an episode that is still running then counts as far as it went.

        Raises:
            ConfigError: `episodes` is below 1, or this environment cannot be recorded.
        """
        if episodes < 1:
            raise ConfigError(f"episodes={episodes!r}: allowed: >= 1")
        generator = self._generator("evaluation")
        name = f"{self.config.objective.name}-seed{self.config.seed}-step{self.steps}"
        played = evaluated(self.config.env, episodes, video, name)
        envs = make_vector_env(played, self.config.seed, first_env=EVALUATION)
        memory = self.new_memory(envs.num_envs)

        @torch.inference_mode()
        def act(obs: Any, action_mask: Array | None, starts: Array) -> Any:
            memory.begin(starts)
            return self._act(obs, deterministic, generator, action_mask, memory)

        try:
            return evaluate(act, envs, episodes, max_steps)
        finally:
            envs.close()

    # --- saving -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that training goes on from, as tensors and plain values; later training leaves it as it is."""
        stood = self._stood if self._collector is None else self._collector.snapshot()
        return {
            "config": self._config_text,
            "spaces": self.spaces,
            "steps": self.steps,
            "iterations": self.iterations,
            "learner": self.learner.state_dict(),
            "objective": _on_cpu(self.objective.state_dict()),
            "obs_normalizer": _on_cpu(self.obs_normalizer.state_dict()),
            "reward_scaler": _on_cpu(self.reward_scaler.state_dict()),
            "action_generator": self._action_generator.get_state(),
            "episodes_begun": list(self._episodes_begun),
            "envs": None if stood is None else stood._asdict(),
            "memory": [x.cpu().clone() for x in self._memory],
            "last100": list(self.last100),
            "best_return": self.best_return,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; all of it or nothing.

        Raises:
            CheckpointError: something is missing, or it is another agent's: other spaces, networks or objective.
        """
        before = self.state_dict()
        try:
            for where, found, own in (("", state, before), (" of learner", state["learner"], before["learner"])):
                if unknown := sorted(found.keys() - own.keys()):
                    raise CheckpointError(f"{', '.join(unknown)}{where} has no place in it")
            if state["spaces"] != self.spaces:
                raise CheckpointError(f"this agent's spaces are {self.spaces}, the checkpoint's {state['spaces']}")
            objective = from_yaml(state["config"], "the checkpoint's config").objective
            if dataclasses.replace(objective, name=self.config.objective.name) != self.config.objective:
                raise CheckpointError(
                    f"this agent's objective is {self.config.objective}, the checkpoint's {objective}"
                )
            stood = None if state["envs"] is None else Snapshot(**state["envs"])
            if stood is not None:
                stood.require_fit(self.config.env.num_envs, self.family.action_shape)
            self._take(state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError, CheckpointError) as error:
            self._take(before)
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"checkpoint does not fit this agent: {reason}; nothing was loaded") from error
        self.close()
        self._stood = stood

    def _take(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        for name in ("objective", "obs_normalizer", "reward_scaler"):
            getattr(self, name).load_state_dict(state[name])
        self._action_generator.set_state(state["action_generator"])
        self.steps, self.iterations = state["steps"], state["iterations"]
        self._episodes_begun, self.last100 = list(state["episodes_begun"]), list(state["last100"])
        self.best_return = state["best_return"]
        self._memory = tuple(x.to(self.device) for x in state["memory"])

    def save(self, path: str | Path) -> None:
        """Write a checkpoint, whole or not at all."""
        checkpoint.save(Path(path), self.state_dict())

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | None = None, total_steps: int | None = None, strict: bool = False
    ) -> Agent:
        """The agent in a checkpoint, or in the newest one of a run folder; runs no code from the file.

        Args:
            path: a checkpoint or a run folder.
            device: as `runtime.device`; none: where it was trained.
            total_steps: of the run, to go on beyond its end; none: as it was.
            strict: refuse a run whose newest checkpoint is damaged, instead of taking the one before it.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        state = checkpoint.load_from(Path(path), strict=strict)
        config = from_yaml(state["config"], f"{path} (config)")
        if device is not None:
            config = dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, device=device))
        if total_steps is not None:
            config = dataclasses.replace(config, total_steps=total_steps)
        agent = cls.__new__(cls)
        agent._build(config, state["spaces"])
        agent.load_state_dict(state)
        return agent

    def close(self) -> None:
        """Close the environments; learning on makes new ones, and brings them to where these stood."""
        if self._collector is not None:
            self._stood = self._collector.snapshot()
            self._collector.envs.close()
            self._collector = None


class ActingMemory:
    """What a recurrent agent remembers while it acts; of no use to others, and harmless.

    Args:
        state: of each stream of observations, `[N, ...]`.
        starts: where the next observation begins an episode, `[N]` bool.
    """

    def __init__(self, state: State, starts: Tensor) -> None:
        self.state, self.starts = state, starts

    def begin(self, where: Any = True) -> None:
        """The next observation begins an episode: everywhere, or `where`, `[N]` bool."""
        self.starts = self.starts | torch.as_tensor(where, device=self.starts.device)


def _spaces_of(envs: Environments, config: TrainConfig) -> dict[str, Any]:
    """The spaces that an agent is made for, as plain values."""
    policy = config.policy
    family = family_of(envs.action_space, policy.distribution, rescale=policy.action_transform == "rescale")
    return {"obs": describe_parts(envs.parts), "action": describe(family)}


def _first(sent: Any) -> Any:
    """The first of the actions that a family sends, whatever it sends them in."""
    if isinstance(sent, dict):
        return {key: _first(part) for key, part in sent.items()}
    return tuple(_first(part) for part in sent) if isinstance(sent, tuple) else sent[0]


def resolve_device(name: str) -> torch.device:
    """The device that `runtime.device` means; auto is cuda where there is one.

    Raises:
        ConfigError: cuda is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"runtime.device={name!r}: PyTorch sees {torch.cuda.device_count()} CUDA devices here; use auto or cpu"
        )
    return device


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.cpu().clone() for name, x in state.items()}
