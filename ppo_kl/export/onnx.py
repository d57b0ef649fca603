"""The agent's most likely action as one ONNX graph, and the check that it is the agent's."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppo_kl.errors import CheckpointError, ConfigError
from ppo_kl.export.acting import ROWS, Acting, answers, leaves, sent, trial
from ppo_kl.observations import Array, Obs, each_part, over_parts
from ppo_kl.training.agent import Agent

TOLERANCE = 1e-5
"""Largest difference of a continuous number, relative where the number is above 1; half floats: their resolution."""


def to_onnx(agent: Agent) -> bytes:
    """The graph: observations `obs`, `obs.KEY` -> `action`, `action.KEY`, and `params`, `[batch, ...]` each.

    A recurrent policy also takes `state.K` and `starts` (bool, where an episode begins; the state there does not count)
    and answers `next_state.K`.

    Args:
        agent: on the CPU.

    Raises:
        ConfigError: the policy has something that PyTorch's exporter cannot put into a graph.
    """
    obs, recurrent = trial(agent)[0], agent.recurrent
    state = agent.policy.initial_state(ROWS)
    starts = torch.ones(ROWS, dtype=torch.bool) if recurrent else None
    rows = {0: torch.export.Dim("batch")}
    dynamic = over_parts(lambda _: rows, obs), tuple(rows for _ in state), rows if recurrent else None
    # What is sent does not depend on the policy: its names can be had of any action.
    actions = sent(agent.family, agent.family.mode(torch.zeros(1, agent.family.num_params)))
    outputs = [*actions, "params", *(f"next_state.{k}" for k in range(len(state)))]
    try:
        with torch.no_grad(), _quiet():
            graph = torch.export.export(Acting(agent), (obs, state, starts), dynamic_shapes=dynamic, strict=True)
            program = torch.onnx.export(
                graph, (), input_names=_inputs(obs, len(state)), output_names=outputs, dynamo=True, verbose=False
            )
    except Exception as error:  # dynamo, the exporter and a user's own network stumble in every way there is
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(
            f"--format onnx: PyTorch cannot make a graph of this policy ({type(error).__name__}: {reason}); use "
            "--format safetensors"
        ) from error
    return _tidied(program.model_proto)  # type: ignore[union-attr]


def check_onnx(path: Path, agent: Agent) -> float:
    """Play the graph with ONNX Runtime against the agent, 64 observations at a time and one alone.

    Args:
        path: of the graph.
        agent: which it must act as, on the CPU.

    Returns:
        The largest difference of a continuous number, as `TOLERANCE` measures it.

    Raises:
        CheckpointError: a discrete action differs, or a continuous number by more than `TOLERANCE`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    observations, largest = trial(agent), 0.0
    wanted = answers(agent, observations)
    for rows in (ROWS, 1):
        memory = agent.new_memory(rows)
        for obs, expected in zip(observations, wanted, strict=True):
            values = [*(x for _, x in each_part(obs)), *memory.state, *([memory.starts] if agent.recurrent else [])]
            given = zip(_inputs(obs, len(memory.state)), values, strict=True)
            found = dict(zip(names, session.run(names, {k: x[:rows].numpy() for k, x in given}), strict=True))
            for name, value in expected.items():
                largest = max(largest, _difference(f"{path.name}: {name}", found[name], value[:rows]))
            memory.state = tuple(torch.from_numpy(found[f"next_state.{k}"]) for k in range(len(memory.state)))
            memory.starts = torch.zeros_like(memory.starts)
    return largest


def interface(path: Path) -> list[tuple[str, str, str, list[int | str]]]:
    """Of each input and output of a graph: which of the two, name, type and shape, for people to read."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sides = {"input": session.get_inputs(), "output": session.get_outputs()}
    return [
        (side, x.name, x.type.removeprefix("tensor(").rstrip(")"), list(x.shape))
        for side, xs in sides.items()
        for x in xs
    ]


def _inputs(obs: Obs, num_states: int) -> list[str]:
    parts = list(leaves(obs, "obs"))
    return [*parts, *(f"state.{k}" for k in range(num_states)), *(["starts"] if num_states else [])]


def _difference(name: str, found: Array, expected: Array) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise CheckpointError(
            f"{name} is {found.dtype} {found.shape}, the agent's {expected.dtype} {expected.shape}; nothing was "
            "exported; use --format safetensors"
        )
    if not np.issubdtype(expected.dtype, np.floating):
        if not np.array_equal(found, expected):
            raise CheckpointError(
                f"{name} differs from the agent's in {(found != expected).sum()} of {expected.size} numbers; nothing "
                "was exported; use --format safetensors"
            )
        return 0.0
    exact = expected.astype(np.float64)
    largest = float((np.abs(found - exact) / np.maximum(1, np.abs(exact))).max(initial=0.0))
    allowed = max(TOLERANCE, float(np.finfo(expected.dtype).eps))
    if not largest <= allowed:
        raise CheckpointError(
            f"{name} differs from the agent's by {largest:.2g}, allowed: {allowed:.2g}; nothing was exported; use "
            "--format safetensors"
        )
    return largest


def _tidied(model: Any) -> bytes:
    """As bytes, the free dimension called batch, without the source paths that the exporter writes beside each node."""
    graph = model.graph
    (free,) = {
        d.dim_param
        for x in graph.input
        for d in x.type.tensor_type.shape.dim
        if d.HasField("dim_param") and d.dim_param
    }
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == free:
                dim.dim_param = "batch"
    for item in (model, graph, *graph.input, *graph.output, *graph.value_info, *graph.node, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    for function in model.functions:
        for item in (function, *function.node):
            del item.metadata_props[:]
            item.doc_string = ""
    content: bytes = model.SerializeToString()
    return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: packages that nobody needs here, its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
