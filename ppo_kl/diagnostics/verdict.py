"""What the numbers of a run mean: a table of symptoms, gravest first, each a sentence and what to try."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from ppo_kl.diagnostics.story import ROUNDING, Story, finite

STALE = 1e-5
"""Nats before the first step: rounding stays below, a stored policy that is not the one that acted does not."""
TINY_TARGET = 1e-6
"""Nats: a target this small is within a hundred roundings of 0, and no update can be steered to it."""
EXPLODED = 0.5
"""Nats: after such an update an action may be e^0.5 = 1.6 times as likely in every state alike."""
FAR = 10.0
"""An update with this many times the target is no noise of a controller that works."""
FAR_SHARE = 0.02
"""One such update happens; one in fifty is a habit."""
HARMLESS = 0.05
"""Nats: below this the policy is hardly another one, however many times the target it is."""
AT_BOUND = 0.25
"""Share of the updates from which on a bound of λ shapes the run and is no visit."""
CYCLE = 0.8
"""Share of moves that turn back: noise alone gives a half, and two thirds when each is judged against the last."""
CYCLE_MOVES = 20
"""Fewer moves alternate by chance."""
LOOSE = 2.0
"""Missing the target by more than this on the mean is no longer tracking it."""
OFTEN_STOPPED = 0.5
"""From here on it is the early stop that sets the KL."""
ENTROPY_LEFT = 0.05
"""Share of the first entropy below which a policy over discrete actions hardly chooses any more."""
NEAR = 0.1
"""Share of what was gained that may be lost again in a run that ended at its best."""
MANY = 0.5
"""Share from which on something is the rule and not the exception."""
ENOUGH = 20
"""Updates below which a return says nothing of learning."""


class Finding(NamedTuple):
    """One thing the numbers say."""

    level: Literal["bad", "watch", "note", "well"]
    """note: no matter of the KL."""
    sentence: str
    advice: str


def judge(story: Story) -> list[Finding]:
    """Everything that is wrong or odd, gravest first; where nothing is wrong, what the KL was comes before."""
    found = [finding for rule in RULES if (finding := rule(story)) is not None]
    return [_as_it_should_be(story), *found] if all(f.level == "note" for f in found) else found


def _failed(story: Story) -> Finding | None:
    state = story.run.state
    if not state.startswith("failed"):
        return None
    where = f"at step {story.run.history.steps[-1]:,}"
    advice = "ppo-kl train --resume goes on with it once the cause is gone."
    if state.startswith("failed: exit status 4"):
        advice = "Begin a new run with a lower training.lr, or with another kl_target or clip_eps."
    return Finding("bad", f"The run {state}, {where}.", advice)


def _nonfinite(story: Story) -> Finding | None:
    t = story.trouble
    parts = [f"{t.skipped:,} gradient steps were skipped"] if t.skipped else []
    parts += [f"the controller met {t.controller:,} KLs"] if t.controller else []
    parts += [f"{tag} had {count:,}" for tag, count in list(t.metrics.items())[:3]]
    if not parts:
        return None
    advice = "Lower training.lr or training.max_grad_norm; look for huge rewards or observations (env.normalize_obs)."
    return Finding("bad", f"Numbers were not finite: {', '.join(parts)}.", advice)


def _stale(story: Story) -> Finding | None:
    before = story.kl.before_update
    if before <= STALE:
        return None
    return Finding(
        "bad",
        f"The KL before an update was up to {before:.2g} nats, not 0: the stored policy is not the one that acted.",
        "A network of your own must not draw noise or change state in forward (dropout, batch norm).",
    )


def _tiny_target(story: Story) -> Finding | None:
    t = story.tracking
    if t is None or t.target >= TINY_TARGET:
        return None
    return Finding(
        "bad",
        f"The target of {t.target:.2g} nats is near what float32 leaves of 0: λ can only hold the policy where it is.",
        "Give a kl_target from 0.001 to 0.05.",
    )


def _did_not_move(story: Story) -> Finding | None:
    if not story.kl.zero > MANY:
        return None
    return Finding(
        "bad",
        f"The KL was 0 (below {ROUNDING:g}) after {story.kl.zero:.0%} of the updates: the policy did not move.",
        "See whether the learning rate is 0, rewards are all alike, or kl_stop ends updates before their first step.",
    )


def _at_max(story: Story) -> Finding | None:
    s, t = story.steering, story.tracking
    if s is None or t is None or s.at_max < AT_BOUND or t.ratio <= 1:
        return None
    return Finding(
        "bad",
        f"λ stood at its max of {s.highest:.3g} after {s.at_max:.0%} of the updates, and yet the KL was {t.ratio:.1f} "
        "times its target.",
        "Raise objective.controller.max, or make updates smaller: training.lr, training.num_epochs.",
    )


def _exploded(story: Story) -> Finding | None:
    kl, t = story.kl, story.tracking
    worst = f"the worst with {kl.worst:.2g} nats at step {kl.worst_at:,}"
    if t is not None and t.far_above >= FAR_SHARE * story.updates and kl.worst > HARMLESS:
        what = f": {_far_above(story)}, {worst}"
    elif kl.worst > EXPLODED:
        what = f", {worst}"
    else:
        return None
    if _ended_at_its_best(story) and (t is None or t.far_above < MANY * story.updates):
        level: Literal["bad", "watch"] = "watch"
        sentence = f"Single updates went far too far{what}; the return came to its best all the same."
    else:
        level, sentence = "bad", f"The KL exploded{what}."
    held = "Lower training.lr or training.num_epochs, or let an early stop end such updates: --kl-stop omnisafe"
    held += "." if t is not None else " --training.kl-stop.threshold 0.02."
    free = "Try an objective that holds the KL, as kl_adaptive or clip; or a lower training.lr."
    return Finding(level, sentence, free if t is None and story.steering is None else held)


def _ended_at_its_best(story: Story) -> bool:
    r = story.returns
    return r is not None and r.best - r.first > r.noise and r.best - r.last <= NEAR * (r.best - r.first)


def _far_above(story: Story) -> str:
    far = 0 if story.tracking is None else story.tracking.far_above
    return f"{far} of {story.updates} updates went beyond {FAR:g} times the target"


def _cycle(story: Story) -> Finding | None:
    s, t = story.steering, story.tracking
    if s is None or t is None or t.factor < LOOSE:
        return None
    moves = s.raised + s.lowered
    if moves < CYCLE_MOVES or moves < MANY * story.updates or s.alternating < CYCLE:
        return None
    return Finding(
        "bad",
        f"λ oscillates: {s.alternating:.0%} of its moves undo the one before, and the KL swings with it.",
        "Use --objective kl_pi, or a smaller objective.controller.factor and a wider band.",
    )


def _at_min(story: Story) -> Finding | None:
    s, t = story.steering, story.tracking
    if s is None or t is None or s.at_min < AT_BOUND or t.ratio >= 1:
        return None
    return Finding(
        "watch",
        f"λ fell to its min of {s.lowest:.3g} and stood there after {s.at_min:.0%} of the updates: they stay below the "
        f"target of {t.target:.2g} nats without a penalty.",
        "Lower kl_target, or make updates larger: training.lr (a linear schedule ends at 0), training.num_epochs.",
    )


def _off_target(story: Story) -> Finding | None:
    t, s = story.tracking, story.steering
    explained = _cycle(story) is not None or (s is not None and max(s.at_min, s.at_max) >= AT_BOUND)
    if t is None or t.factor <= LOOSE or explained:
        return None
    missed = f"off by a factor of {t.factor:.1f} on average"
    if t.ratio > LOOSE:
        what, advice = "lies above its target", "Start with a larger kl_lambda, or lower training.lr."
    elif t.ratio < 1 / LOOSE:
        what, advice = "lies below its target", "Start with a smaller kl_lambda, lower kl_target, or raise training.lr."
    else:
        what = "scatters around its target"
        advice = "Updates of more samples differ less (env.num_envs, training.num_steps); so do those of a lower lr."
    return Finding("watch", f"The KL {what}, {missed}; {t.inside:.0%} of the updates are in its band.", advice)


def _some_spikes(story: Story) -> Finding | None:
    kl, t = story.kl, story.tracking
    if t is None or not 0 < t.far_above < FAR_SHARE * story.updates or not HARMLESS < kl.worst <= EXPLODED:
        return None
    what = f"{_far_above(story)}, the worst with {kl.worst:.2g} nats at step {kl.worst_at:,}."
    return Finding("note", what, "If the return fell there: --kl-stop omnisafe, or a lower training.lr.")


def _stopped_early(story: Story) -> Finding | None:
    share = story.trouble.stopped_early
    if share < OFTEN_STOPPED:
        return None
    return Finding(
        "watch",
        f"The early stop ended {share:.0%} of the updates: it sets the KL more than the objective does.",
        "Raise training.kl_stop.multiplier, or switch it off to see what the objective does by itself.",
    )


def _return_fell(story: Story) -> Finding | None:
    r = story.returns
    if r is None or r.best - r.first <= r.noise or r.best - r.last <= MANY * (r.best - r.first):
        return None
    return Finding(
        "bad",
        f"The return fell from its best, {r.best:.4g} at step {r.best_at:,}, to {r.last:.4g}.",
        "See what the KL did just before; try a smaller kl_target or lr, or an lr_schedule that ends at 0.",
    )


def _learned_nothing(story: Story) -> Finding | None:
    r = story.returns
    if r is None or story.updates < ENOUGH or r.last > r.first + r.noise:
        return None
    if r.best - r.first > r.noise:  # it had learned, and forgot: said by another rule
        return None
    return Finding(
        "bad",
        f"The return did not rise: {r.first:.4g} at first, {r.last:.4g} at the end.",
        "Train for longer, or look at lr, gamma and the reward's scale; a tuned file in configs/env may exist.",
    )


def _collapsed(story: Story) -> Finding | None:
    entropy = finite(story.run.history.column("policy/entropy"))
    gaussian = "policy/scale_mean" in story.run.history.columns
    if gaussian or not len(entropy) or entropy[0] <= 0 or entropy[-1] >= ENTROPY_LEFT * entropy[0]:
        return None
    return Finding(
        "note",
        f"The entropy collapsed from {entropy[0]:.2g} to {entropy[-1]:.2g} nats: the policy hardly explores any more.",
        "If the return could be higher: raise training.ent_coef, or lower the KL.",
    )


def _std_at_bound(story: Story) -> Finding | None:
    share = finite(story.run.history.column("policy/std_at_bound"))
    if not len(share) or share[-1] < MANY:
        return None
    what = f"{share[-1]:.0%} of the standard deviations stand at log_std_min or log_std_max at the end."
    return Finding("note", what, "Widen policy.log_std_min and log_std_max, or look why the policy runs into them.")


def _blind_critic(story: Story) -> Finding | None:
    explained = finite(story.run.history.column("value/explained_variance"))
    late = explained[len(explained) // 2 :]
    if len(explained) < ENOUGH or (late > 0).mean() > MANY:
        return None
    what = "The value function is no better than a constant in most updates of the second half."
    return Finding("note", what, "Try a larger training.critic_lr, env.normalize_reward, or a smaller gamma.")


RULES: tuple[Callable[[Story], Finding | None], ...] = (
    _failed,
    _nonfinite,
    _stale,
    _tiny_target,
    _did_not_move,
    _at_max,
    _cycle,
    _exploded,
    _return_fell,
    _learned_nothing,
    _at_min,
    _off_target,
    _some_spikes,
    _stopped_early,
    _std_at_bound,
    _collapsed,
    _blind_critic,
)
"""Every symptom, gravest first."""


def _as_it_should_be(story: Story) -> Finding:
    t, kl, r = story.tracking, story.kl, story.returns
    learned = "" if r is None else f" The return went from {r.first:.4g} to {r.last:.4g}."
    if t is not None:
        held = f"The KL was held at its target of {t.target:.2g} nats, within a factor of {t.factor:.1f} on average."
        return Finding("well", held + learned, "Nothing to repair.")
    was = f"{kl.median:.2g} nats (median; quartiles {kl.low:.2g} to {kl.high:.2g})"
    return Finding(
        "well",
        f"{_what_held(story)}, the KL of an update was {was}.{learned}",
        f"To hold it there: --objective kl_adaptive --objective.controller.kl-target {kl.median:.2g}",
    )


def _what_held(story: Story) -> str:
    config, s = story.run.config, story.steering
    if s is not None:
        return f"With λ at {s.last:.3g}" if s.first == s.last else f"With λ from {s.first:.3g} to {s.last:.3g}"
    clips = "clip" in story.run.objective if config is None else config.objective.surrogate.kind != "ratio"
    return "With clipping alone" if clips else "With nothing to hold it"
