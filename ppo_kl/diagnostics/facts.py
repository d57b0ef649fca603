"""What is known of a run, a line of text each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ppo_kl.diagnostics.history import History
from ppo_kl.diagnostics.story import Story, finite


def facts_of(story: Story) -> list[tuple[str, str]]:
    """Name and value of everything that is known of the run; what is not known is left out."""
    return [(name, text) for name, tell in FACTS for text in [tell(story)] if text]


def _return(story: Story) -> str:
    r = story.returns
    if r is None:
        return "no episode ended"
    text = f"{r.first:.4g} at first, {r.last:.4g} at the end (last 100 episodes); best {r.best:.4g} at {r.best_at:,}"
    return text if r.evaluated is None else f"{text}; evaluated {r.evaluated:.4g}"


def _kl(story: Story) -> str:
    kl = story.kl
    return f"median {kl.median:.2g} nats, quartiles {kl.low:.2g} to {kl.high:.2g}, mean {kl.mean:.2g}"


def _worst(story: Story) -> str:
    most = finite(story.run.history.column("kl/forward_max"))
    state = f"; {most.max():.2g} in the state that moved most" if len(most) else ""
    return f"{story.kl.worst:.2g} nats at step {story.kl.worst_at:,}{state}"


def _target(story: Story) -> str:
    t = story.tracking
    if t is None:
        return "none"
    shares = f"{t.inside:.0%} of the updates in the band, {t.above:.0%} above, {t.below:.0%} below"
    return f"{t.target:.2g} nats: {shares}; median KL / target {t.ratio:.2f}"


def _error(story: Story) -> str:
    t = story.tracking
    return "" if t is None else f"off by a factor of {t.factor:.2f}: exp(mean |ln(KL / target)|) after the first tenth"


def _lambda(story: Story) -> str:
    s = story.steering
    if s is None:
        return "0: no penalty"
    if s.raised + s.lowered == 0:
        return f"{s.first:.3g} throughout"
    moves = f"raised {s.raised:,} times, lowered {s.lowered:,}, kept {s.kept:,}"
    return f"{s.first:.3g} at first, {s.last:.3g} at the end, {s.lowest:.3g} to {s.highest:.3g}; {moves}"


def _saturation(story: Story) -> str:
    s = story.steering
    if s is None or story.tracking is None:
        return ""
    return f"λ at its min after {s.at_min:.0%} of the updates, at its max after {s.at_max:.0%}"


def _implied(story: Story) -> str:
    known = finite(story.run.history.column("penalty/implied_lambda"))
    return f"median {np.median(known):.3g}: the λ that this objective behaves like" if len(known) else ""


def _clip_fraction(story: Story) -> str:
    return _mean_and_most(story.run.history, "ratio/clip_fraction")


def _ratio(story: Story) -> str:
    low, high, ess = (finite(story.run.history.column(f"ratio/{name}")) for name in ("min", "max", "ess"))
    if not len(low) or not len(high):
        return ""
    left = f"; effective samples at least {ess.min():.0%}" if len(ess) else ""
    return f"{low.min():.2g} to {high.max():.3g}{left}"


def _share(story: Story) -> str:
    share = finite(story.run.history.column("penalty/share"))
    if story.steering is None or not len(share):
        return ""
    return f"median {np.median(share):.2g} of the surrogate" + _gradients(story.run.history)


def _gradients(history: History) -> str:
    norm, cosine = (finite(history.column(f"penalty/{name}")) for name in ("grad_norm_ratio", "grad_cosine"))
    if not len(norm) or not len(cosine):
        return ""
    return f"; its gradient {np.median(norm):.2g} of the surrogate's, cosine {np.median(cosine):+.2f}"


def _entropy(story: Story) -> str:
    return _from_to(story.run.history, "policy/entropy", " nats")


def _std(story: Story) -> str:
    text = _from_to(story.run.history, "policy/scale_mean")
    at_bound = finite(story.run.history.column("policy/std_at_bound"))
    return f"{text}; {at_bound[-1]:.0%} at a bound" if text and len(at_bound) else text


def _explained(story: Story) -> str:
    known = finite(story.run.history.column("value/explained_variance"))
    late = known[-max(len(known) // 10, 1) :]
    return f"{late.mean():.2f} in the last tenth (1 is perfect, 0 no better than a constant)" if len(known) else ""


def _early_stops(story: Story) -> str:
    share = story.trouble.stopped_early
    return f"{share:.0%} of the updates" if share else ""


def _not_finite(story: Story) -> str:
    t = story.trouble
    counts = {"gradient steps skipped": t.skipped, "KLs at the controller": t.controller, "episodes cut": t.episodes}
    parts = [f"{count:,} {what}" for what, count in counts.items() if count]
    parts += [f"{tag} {count:,} times" for tag, count in t.metrics.items()]
    return ", ".join(parts) or "nothing"


FACTS: tuple[tuple[str, Callable[[Story], str]], ...] = (
    ("Return", _return),
    ("KL", _kl),
    ("  worst", _worst),
    ("  target", _target),
    ("  tracking", _error),
    ("λ", _lambda),
    ("  saturated", _saturation),
    ("  implied", _implied),
    ("Penalty", _share),
    ("Clipped", _clip_fraction),
    ("Ratio", _ratio),
    ("Entropy", _entropy),
    ("Std", _std),
    ("Explained var.", _explained),
    ("Early stop", _early_stops),
    ("Not finite", _not_finite),
)
"""What is told of a run, in this order."""


def _mean_and_most(history: History, tag: str) -> str:
    known = finite(history.column(tag))
    return f"mean {known.mean():.1%} of the samples, at most {known.max():.0%}" if len(known) else ""


def _from_to(history: History, tag: str, unit: str = "") -> str:
    known = finite(history.column(tag))
    return f"{known[0]:.3g}{unit} at first, {known[-1]:.3g} at the end" if len(known) else ""
