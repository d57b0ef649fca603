"""Every metric: what it means, in which unit, measured where. The README's table and the dashboard speak from here."""

from __future__ import annotations

import re
from typing import NamedTuple


class Metric(NamedTuple):
    """One tag of TensorBoard and of `metrics.jsonl`."""

    unit: str
    theta: str
    """At which parameters: new (after the update), old (at collection), update (mean over its gradient steps), or –."""
    reduction: str
    """How samples, and later ranks, become one number."""
    meaning: str


GLOSSARY: dict[str, Metric] = {
    "kl/forward": Metric("nats", "new", "mean", "exact KL(π_old ‖ π_θ), summed over action dimensions"),
    "kl/forward_max": Metric("nats", "new", "max", "the same in the state where the policy moved furthest"),
    "kl/forward_p95": Metric("nats", "new", "quantile", "the same, 95th percentile over states"),
    "kl/reverse": Metric("nats", "new", "mean", "exact KL(π_θ ‖ π_old)"),
    "kl/mean_part": Metric("nats", "new", "mean", "what the means contribute to kl/forward (Gaussian policies)"),
    "kl/scale_part": Metric("nats", "new", "mean", "what the scales contribute to kl/forward (Gaussian policies)"),
    "kl/k1": Metric("nats", "new", "mean", "estimate −log r of kl/forward on the sampled actions; can be negative"),
    "kl/k2": Metric("nats", "new", "mean", "estimate ½ (log r)²; biased"),
    "kl/k3": Metric("nats", "new", "mean", "estimate (r − 1) − log r; unbiased, never negative"),
    "kl/before_update": Metric("nats", "old", "mean", "kl/forward before the first step: 0 but for rounding"),
    "kl/epoch_<i>": Metric(
        "nats",
        "update",
        "mean",
        "the inner loop: kl/forward as the minibatches of epoch i met it, before their steps (of at most 10 epochs)",
    ),
    "kl/controlled": Metric("nats", "new", "mean", "the KL the controller sees: exact, in the penalty's direction"),
    "kl/target_ratio": Metric("1", "new", "mean", "kl/controlled / kl_target"),
    "kl/target_low": Metric("nats", "–", "constant", "below this the controller lowers λ"),
    "kl/target_high": Metric("nats", "–", "constant", "above this the controller raises λ"),
    "penalty/lambda": Metric("1", "–", "constant", "the λ this update used"),
    "penalty/loss": Metric("1", "new", "mean", "λ · mean penalty"),
    "penalty/share": Metric("1", "new", "mean", "|λ · mean penalty| / |mean surrogate|"),
    "penalty/grad_norm_ratio": Metric(
        "1", "new", "mean", "‖∇ penalty‖ / ‖∇ surrogate‖, λ included; every diagnostics.gradient_every iterations"
    ),
    "penalty/grad_cosine": Metric(
        "1", "new", "mean", "cosine of ∇ surrogate and ∇ KL: −1 where the KL pulls straight back; as often"
    ),
    "penalty/implied_lambda": Metric(
        "1",
        "new",
        "mean",
        "the λ at which a KL penalty alone would pull as this objective does: ⟨∇ loss − ∇ L_ratio, ∇ KL⟩ / ‖∇ KL‖²; "
        "as often",
    ),
    "penalty/saturated": Metric("0 or 1", "–", "constant", "after adapting, λ stands at its min or max"),
    "penalty/nonfinite": Metric("count", "–", "constant", "non-finite KLs the controller met so far"),
    "ratio/mean": Metric("1", "new", "mean", "r = π_θ(a|s) / π_old(a|s)"),
    "ratio/min": Metric("1", "new", "min", "smallest r"),
    "ratio/max": Metric("1", "new", "max", "largest r"),
    "ratio/clip_fraction": Metric(
        "share", "new", "mean", "samples with r outside the objective's clip band (1 ± 0.2 where it has none)"
    ),
    "ratio/ess": Metric("share", "new", "mean", "effective sample size (mean r)² / mean r²"),
    "loss/policy": Metric("1", "update", "mean", "the objective: surrogate + penalty"),
    "loss/value": Metric("1", "update", "mean", "(value − ret)², before vf_coef"),
    "loss/entropy": Metric("nats", "update", "mean", "−entropy, before ent_coef"),
    "loss/total": Metric("1", "update", "mean", "what the gradient is taken of"),
    "policy/entropy": Metric("nats", "new", "mean", "entropy of π_θ"),
    "policy/scale_mean": Metric("1", "new", "mean", "standard deviation, mean over dimensions (Gaussian policies)"),
    "policy/std_at_bound": Metric(
        "share", "new", "mean", "standard deviations that stand at log_std_min or log_std_max (Gaussian policies)"
    ),
    "value/explained_variance": Metric("1", "old", "variance", "1 − Var(ret − value) / Var(ret)"),
    "optim/lr": Metric("1", "–", "constant", "learning rate of the actor"),
    "optim/grad_norm": Metric("1", "update", "mean", "norm of the whole gradient before clipping"),
    "optim/steps": Metric("count", "update", "constant", "gradient steps computed with a finite result"),
    "optim/skipped": Metric("count", "update", "constant", "gradient steps skipped: loss or gradient not finite"),
    "optim/stopped_early": Metric(
        "0 or 1", "update", "constant", "kl_stop ended the update, or the actor's part of it"
    ),
    "rollout/return_mean": Metric(
        "reward", "old", "mean", "undiscounted return of the episodes that ended in this rollout"
    ),
    "rollout/return_last100": Metric("reward", "old", "mean", "the same over the last 100 episodes"),
    "rollout/length_mean": Metric("steps", "old", "mean", "length of the episodes that ended in this rollout"),
    "rollout/episodes": Metric("count", "old", "sum", "episodes that ended in this rollout"),
    "eval/return_mean": Metric(
        "reward", "new", "mean", "undiscounted return on environments of its own, every evaluation.every iterations"
    ),
    "eval/return_std": Metric("reward", "new", "variance", "standard deviation of the same over its episodes"),
    "env/nonfinite": Metric(
        "count", "old", "sum", "episodes of this rollout cut by a number that is not finite (env.nonfinite: truncate)"
    ),
    "time/steps_per_second": Metric("1/s", "–", "sum", "environment steps by wall clock, whole iteration"),
    "time/rollout_seconds": Metric("s", "–", "max", "collecting and advantage estimation"),
    "time/update_seconds": Metric("s", "–", "max", "gradient steps and measurement"),
    "system/memory_mb": Metric(
        "MB", "–", "max", "most memory the process held so far (Linux); on CUDA, of the device's"
    ),
}
"""Every tag that exists, in the order in which it is shown."""

HISTOGRAMS: dict[str, Metric] = {
    "kl/per_state": Metric("nats", "new", "histogram", "exact KL(π_old ‖ π_θ) of each state"),
    "ratio/per_sample": Metric("1", "new", "histogram", "r of each sample"),
    "policy/action_<i>": Metric("–", "old", "histogram", "number i of the actions, as sampled"),
}
"""In TensorBoard alone, every `diagnostics.histogram_every` iterations."""


def metric_of(tag: str) -> Metric | None:
    """What a tag means, the number in `kl/epoch_3` standing for any; none of a tag that is not ours."""
    by_tag = GLOSSARY | HISTOGRAMS
    return by_tag.get(tag) or by_tag.get(re.sub(r"_\d+$", "_<i>", tag))


def as_markdown() -> str:
    """The table in the README."""
    cells = [(f"`{tag}`", m.unit, m.theta, m.meaning.replace("|", "\\|")) for tag, m in (GLOSSARY | HISTOGRAMS).items()]
    rows = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join(["| tag | unit | at θ | meaning |", "|---|---|---|---|", *rows])
