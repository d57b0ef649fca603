"""The model card of an export: README.md in Hugging Face's manner, from what is known and measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from importlib.metadata import version

import yaml

from ppo_kl import __version__
from ppo_kl.imports import modules_in
from ppo_kl.load import to_yaml
from ppo_kl.training.agent import Agent
from ppo_kl.training.evaluation import Evaluation

LIBRARY = "library_name: ppo_kl"
"""The line by which an export is known."""
Row = tuple[str, str, str, list[int | str]]


def card(agent: Agent, played: Evaluation | None, kl: Sequence[float], graph: Sequence[Row], weights: bool) -> str:
    """The text.

    Args:
        agent: that is exported.
        played: episodes of it with its most likely actions.
        kl: `kl/forward` of its training, nats, one per iteration.
        graph: side, name, type and shape of what goes in and out of the ONNX graph; empty where there is none.
        weights: whether there are safetensors.
    """
    sections = [_front(agent, played), _what(agent, played, kl)]
    sections += [_load(agent)] if weights else []
    sections += [_graph(agent, graph)] if graph else []
    sections += [_objective(agent), _versions()]
    return "\n\n".join(sections) + "\n"


def _front(agent: Agent, played: Evaluation | None) -> str:
    env, name = agent.config.env.id, agent.config.objective.name
    about: dict[str, object] = {"tags": ["reinforcement-learning", "ppo", name, env]}
    if played is not None:
        metric = {"type": "mean_reward", "name": "mean_reward", "value": f"{played.mean:.2f} +/- {played.std:.2f}"}
        task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
        result = {"task": task, "dataset": {"name": env, "type": env}, "metrics": [metric]}
        about["model-index"] = [{"name": f"PPO, {name}", "results": [result]}]
    return f"---\n{LIBRARY}\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---"


def _what(agent: Agent, played: Evaluation | None, kl: Sequence[float]) -> str:
    config = agent.config
    lines = [
        f"# PPO with the objective {config.objective.name} on {config.env.id}",
        "",
        f"A policy trained by ppo_kl for {agent.steps:,} environment steps, seed {config.seed}.",
        "",
        "| | |",
        "|---|---|",
        f"| environment | `{config.env.id}` |",
        f"| observation | {', '.join(f'{part.key or part.kind} {list(part.shape)}' for part in agent.parts)} |",
        f"| action | {agent.spaces['action']['kind']} |",
        f"| objective | {config.objective.name}: see below |",
        f"| environment steps | {agent.steps:,} |",
    ]
    if played is None:
        lines.append("| return | not measured when it was exported |")
    else:
        episodes = f"mean ± SD of {len(played.returns)} episodes, most likely (deterministic) actions"
        lines.append(f"| return | {played.mean:.2f} ± {played.std:.2f} ({episodes}) |")
    if kl:
        of = f"median of {len(kl)} iterations, exact KL(π_old ‖ π), kl/forward"
        lines.append(f"| KL of an update | {statistics.median(kl):.4g} nats ({of}) |")
    return "\n".join(lines)


def _load(agent: Agent) -> str:
    config = agent.config
    modules = dict.fromkeys(modules_in(config))
    lines = [f"import {module}  # what the agent is made of; nothing imports it by itself" for module in modules]
    if config.env.vectorization == "native":
        lines += ["from ppo_kl.export import load", "", 'agent = load(".")  # this folder', "print(agent.evaluate(1))"]
    else:
        lines += ["from ppo_kl.envs.build import build", "from ppo_kl.export import load", ""]
        lines += ['agent = load(".")  # this folder', "env = build(agent.config.env)"]
        lines += ["memory = agent.new_memory()"] if agent.recurrent else []
        lines += [
            "obs, info = env.reset(seed=0)",
            "total, over = 0.0, False",
            "while not over:",
            f"    action = agent.act(obs{', memory=memory' if agent.recurrent else ''})",
            "    obs, reward, terminated, truncated, info = env.step(action)",
            "    total, over = total + float(reward), terminated or truncated",
            'print("return", total)',
        ]
    text = ["## Play", "", '`pip install "ppo-kl[export]"`, then, in this folder:', "", "```python", *lines, "```"]
    if agent.family.mask_sizes:
        text += ["", 'Where the environment sends `info["action_mask"]`, give it: `agent.act(obs, action_mask=...)`.']
    return "\n".join(text)


def _graph(agent: Agent, graph: Sequence[Row]) -> str:
    rows = [f"| {side} | `{name}` | {kind} | [{', '.join(map(str, shape))}] |" for side, name, kind, shape in graph]
    text = (
        "## ONNX\n\n`policy.onnx` takes observations as the environment sends them, cast to the type below, and gives "
        "the most likely action as the environment takes it; normalisation, clipping and stretching are in the graph. "
        "`params` are the parameters of the action distribution."
    )
    if agent.recurrent:
        text += (
            " Set `starts` where an episode begins, whatever `state.K` is there, and give `next_state.K` back with the "
            "next observation."
        )
    if agent.family.mask_sizes:
        text += " The graph takes no action mask."
    return "\n".join([text, "", "| | name | type | shape |", "|---|---|---|---|", *rows])


def _objective(agent: Agent) -> str:
    return (
        f"## Objective\n\n```yaml\n{to_yaml(agent.config.objective)}```\n\nEverything else that was set: `config.yaml`."
    )


def _versions() -> str:
    found = ", ".join(f"{name} {version(name)}" for name in ("torch", "gymnasium", "numpy"))
    return f"## Versions\n\nExported with ppo_kl {__version__}, {found}"
