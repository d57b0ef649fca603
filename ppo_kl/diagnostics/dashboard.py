"""What TensorBoard shows beyond single curves: the KL in its band, and the settings of every run in one table."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from torch.utils.tensorboard.summary import hparams

from ppo_kl.config import TrainConfig
from ppo_kl.config.checked import Settings, types_of
from ppo_kl.config.objective import KINDS

LAYOUT = {
    "KL at a glance": {
        "return, last 100 episodes": ["Multiline", ["rollout/return_last100"]],
        # Smoothed, which a Margin chart never is; and of runs without a target too.
        "KL of each update, and its target band (nats)": [
            "Multiline",
            ["kl/controlled", "kl/target_low", "kl/target_high"],
        ],
        "λ, and the λ that the objective amounts to": ["Multiline", ["penalty/lambda$", "penalty/implied_lambda"]],
        "penalty's share of the loss": ["Multiline", ["penalty/share"]],
        "KL as the epochs of an update went by (nats)": ["Multiline", [r"kl/epoch_\d+$"]],
        "tail of the ratio": ["Multiline", ["ratio/min$", "ratio/max$"]],
    },
    # A category of its own: among others TensorBoard puts a Margin chart last.
    "KL in its target band, as it is": {
        "KL of each update (nats)": ["Margin", ["kl/controlled", "kl/target_low", "kl/target_high"]],
    },
    "KL in detail": {
        "KL, both directions (nats)": ["Multiline", ["kl/forward$", "kl/reverse$"]],
        "mean, 95th percentile and largest of the states (nats)": [
            "Multiline",
            ["kl/forward$", "kl/forward_p95", "kl/forward_max"],
        ],
        "exact KL and its estimates (nats)": ["Multiline", ["kl/forward$", "kl/k1", "kl/k2", "kl/k3"]],
        "parts of a Gaussian's KL (nats)": ["Multiline", ["kl/mean_part", "kl/scale_part"]],
        "clip fraction": ["Multiline", ["ratio/clip_fraction"]],
        "gradients: penalty to surrogate, cosine": ["Multiline", ["penalty/grad_norm_ratio", "penalty/grad_cosine"]],
    },
}
"""The custom-scalars page, the same in every run, so that TensorBoard merges them; Multiline tags are patterns."""

HPARAM_METRICS = ("rollout/return_last100", "kl/forward", "penalty/lambda", "ratio/clip_fraction")
"""The columns of the hparams table beside the settings."""


def hparam_summaries(config: TrainConfig) -> tuple[Any, Any, Any]:
    """Experiment, session start and session end of a run for TensorBoard's hparams page.

    TensorBoard takes the table's columns from one run's experiment alone, so every run writes the same one, made of the
    settings of all objectives; each run's session then names the values it has.
    """
    columns = {**_columns(TrainConfig, ""), **_columns_of_parts()}
    metrics = dict.fromkeys(HPARAM_METRICS, 0.0)
    experiment, _, _ = hparams(columns, metrics)  # type: ignore[no-untyped-call]
    values = {k: v for k, v in _values(config, "").items() if k in columns}
    _, start, end = hparams(values, metrics)  # type: ignore[no-untyped-call]
    return experiment, start, end


_LEFT_OUT = frozenset({"runs_dir", "runtime", "diagnostics", "evaluation"})


def _columns(cls: type[Settings], prefix: str) -> dict[str, Any]:
    """Every setting's dotted name, with an empty value of its type."""
    columns: dict[str, Any] = {}
    for name, kind in types_of(cls).items():
        if name in _LEFT_OUT or typing.get_origin(kind) is typing.ClassVar:
            continue
        if isinstance(kind, type) and kind in KINDS:
            columns[f"{prefix}{name}.kind"] = ""
        elif isinstance(kind, type) and issubclass(kind, Settings):
            columns |= _columns(kind, f"{prefix}{name}.")
        else:
            columns[prefix + name] = _empty(kind)
    return columns


def _columns_of_parts() -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for family, kinds in KINDS.items():
        for cls in kinds.values():
            columns |= _columns(cls, f"objective.{family.__name__.lower()}.")
    return columns


def _empty(kind: Any) -> Any:
    if kind is bool:
        return False
    number = kind in (int, float) or any(k in (int, float) for k in typing.get_args(kind))
    return 0.0 if number and typing.get_origin(kind) is not tuple else ""


def _values(config: Settings, prefix: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, field.name), prefix + field.name
        if isinstance(value, Settings):
            kind = getattr(value, "kind", None)
            values |= {f"{name}.kind": kind} if isinstance(kind, str) else {}
            values |= _values(value, f"{name}.")
        elif value is not None:
            values[name] = str(value) if isinstance(value, (tuple, dict)) else value
    return values
