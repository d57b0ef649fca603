"""The published objectives by name, as data.

`make configs` writes `configs/objective/NAME.yaml` and the README's table from them. A name that is none of ours is
looked for among what installed packages offer.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

from ppo_kl.config.checked import nearest
from ppo_kl.config.objective import (
    KINDS,
    PI,
    SPO,
    Adaptive,
    Banded,
    Clip,
    Drift,
    DualClip,
    Fixed,
    ForwardKL,
    KLip,
    NoPenalty,
    ObjectiveConfig,
    Part,
    Ratio,
    ReverseKL,
    Rollback,
    Schedule,
    SoftClip,
    Surrogate,
    Truly,
    TrustGate,
    TrustRollback,
)
from ppo_kl.errors import ConfigError

ENTRY_POINTS = "ppo_kl.objectives"
"""Group of entry points by which an installed package adds objectives."""

# Each is what its docstring says: the formula; when to use it; what is known of its performance; where it is from.


def _plain(name: str, surrogate: Surrogate) -> ObjectiveConfig:
    return ObjectiveConfig(name, surrogate, NoPenalty(), Fixed(0.0))


def none() -> ObjectiveConfig:
    """−r A.

    Use: as the control: nothing holds the policy back.
    Known: the worst row of the paper's table (−0.39, clipping 0.82); below a random policy on Pendulum here.
    Source: Schulman 2017, arXiv:1707.06347, eq. 6
    """
    return _plain("none", Ratio())


def clip() -> ObjectiveConfig:
    """−min(r A, clip(r, 1 ± ε) A), ε 0.2.

    Use: as the baseline that everybody knows.
    Known: the paper's best row (0.82); it says nothing about the KL it ends at.
    Source: Schulman 2017, arXiv:1707.06347, eq. 7
    """
    return _plain("clip", Clip())


def kl_fixed() -> ObjectiveConfig:
    """−r A + λ KL(π_old ‖ π_θ), λ 1.

    Use: when λ is what you study, or has been tuned.
    Known: 0.62 to 0.72 in the paper for λ 0.3 to 10; the KL that results depends on the task.
    Source: Schulman 2017, arXiv:1707.06347, eq. 8
    """
    return ObjectiveConfig("kl_fixed", Ratio(), ForwardKL(), Fixed())


def kl_adaptive() -> ObjectiveConfig:
    """−r A + λ KL(π_old ‖ π_θ); λ doubles above 1.5 d, halves below d / 1.5, d 0.01.

    Use: as the penalty of the paper; you choose the KL, λ follows.
    Known: 0.74 in the paper; behind clip on Ant (159 to 2193, arXiv:2606.23932), in docs/measured.md too; can cycle.
    Source: Schulman 2017, arXiv:1707.06347, section 4
    """
    return ObjectiveConfig("kl_adaptive", Ratio(), ForwardKL(), Adaptive())


def kl_clip() -> ObjectiveConfig:
    """Clipped surrogate + λ KL(π_old ‖ π_θ), λ as kl_adaptive.

    Use: when clipping is to stay and the KL is to be bounded as well.
    Known: no published table; with two limits at once the median KL stays below the target in docs/measured.md.
    Source: Schulman 2017, arXiv:1707.06347, eq. 7 and 8 together
    """
    return ObjectiveConfig("kl_clip", Clip(), ForwardKL(), Adaptive())


def rllib() -> ObjectiveConfig:
    """Clipped surrogate, ε 0.3, + λ KL(π_old ‖ π_θ); λ·1.5 above 2 d, λ/2 below d/2, λ₀ 0.2, d 0.01.

    Use: to compare with RLlib's PPO as it comes.
    Known: λ rests anywhere while the KL is between d/2 and 2 d; no figures of our own beyond docs/measured.md.
    Source: RLlib, PPOConfig
    """
    return ObjectiveConfig("rllib", Clip(0.3), ForwardKL(), Banded())


def kl_hinge() -> ObjectiveConfig:
    """−r A + λ KL + 50 max(0, K − 2 d)²; λ·1.5 above 2 d, λ/1.5 below d/2, d 0.003, λ in [1/35, 35].

    Use: for small, safe updates with a wall behind the penalty.
    Known: its author published MuJoCo runs with 20 full-batch epochs (recipe pat_coady), not repeated here yet.
    Source: pat-coady/trpo, after Schulman's modular_rl
    """
    controller = Banded(kl_target=0.003, kl_lambda=1.0, down=1 / 1.5, min=1 / 35, max=35.0)
    return ObjectiveConfig("kl_hinge", Ratio(), ForwardKL(hinge=50.0), controller)


def kl_pi() -> ObjectiveConfig:
    """−r A + λ KL; log λ by proportional and integral control of log(K / d), d 0.01.

    Use: when the realised KL is to stay at the target, not in a band around it.
    Known: on a noiseless plant KL = c/λ² it ends on d, where the doubling rule cycles by 2.5; no published returns.
    Source: velocity form of a PI controller, in log space
    """
    return ObjectiveConfig("kl_pi", Ratio(), ForwardKL(), PI())


def kl_deadbeat() -> ObjectiveConfig:
    """−r A + λ KL; λ · √(K / d), by no more than 2, d 0.01.

    Use: where the inner optimisation converges (many epochs), so that KL ∝ 1/λ².
    Known: on that plant it is there in one step; it follows noise as fast. No published returns.
    Source: inverse of KL = c / λ²
    """
    return ObjectiveConfig("kl_deadbeat", Ratio(), ForwardKL(), PI(k_i=0.5, k_p=0.0, step_limit=2.0))


def dual_clip() -> ObjectiveConfig:
    """As clip, and for A < 0 no loss above 3 |A|.

    Use: with stale or distributed data, whose ratios are large.
    Known: meant for very large ratios; in docs/measured.md it is clip on CartPole and within noise of it on Pendulum.
    Source: Ye 2020, arXiv:1912.09729
    """
    return _plain("dual_clip", DualClip())


def rollback() -> ObjectiveConfig:
    """As clip, but outside the band a slope of −0.3 that pulls back (PPO-RB).

    Use: where clip lets the ratio run away outside its band.
    Known: no independent figures known to us; docs/measured.md.
    Source: Wang 2020, arXiv:1903.07940
    """
    return _plain("rollback", Rollback())


def tr_ppo() -> ObjectiveConfig:
    """−r A; no gradient from a sample with KL ≥ 0.035 that moves on (TR-PPO).

    Use: to bound the KL of every state rather than the ratio of the sampled action.
    Known: its authors: HalfCheetah 1623 → 4672, Walker2d 4036 → 4874, Hopper 3612 → 3788 over clip (4 seeds).
    Source: Wang 2020, arXiv:1903.07940
    """
    return _plain("tr_ppo", TrustGate())


def tr_ppo_rb() -> ObjectiveConfig:
    """As tr_ppo from KL ≥ 0.03, with a slope of −0.05 that pulls back.

    Use: where tr_ppo overshoots its radius.
    Known: no independent figures known to us; docs/measured.md.
    Source: Wang 2020, arXiv:1903.07940
    """
    return _plain("tr_ppo_rb", TrustRollback())


def truly_ppo() -> ObjectiveConfig:
    """−r A + 5 KL on samples with KL ≥ 0.03 that move on, else −r A (Truly PPO).

    Use: a trust region per state with a restoring force of exact KL.
    Known: no independent figures known to us; docs/measured.md.
    Source: Wang 2020, arXiv:1903.07940
    """
    return _plain("truly_ppo", Truly())


def spo() -> ObjectiveConfig:
    """−(r A − |A| (r − 1)² / (2 ε)), ε 0.2.

    Use: to keep every ratio inside 1 ± ε, also with deep networks and many epochs.
    Known: no independent figures known to us; moves least of all in docs/measured.md.
    Source: Xie 2024, arXiv:2401.16025
    """
    return _plain("spo", SPO())


def klip() -> ObjectiveConfig:
    """−r A, + sg(r A) log r where clip would kill the gradient.

    Use: as the bridge between the two families: its gradient is clip's.
    Known: the gradient is clip's (a test), so returns differ by rounding alone, which chaos amplifies.
    Source: Colletti & Holzinger 2026, arXiv:2606.23932
    """
    return _plain("klip", KLip())


def soft_clip() -> ObjectiveConfig:
    """As klip, but the gradient fades out over a ramp of 0.05 beyond the band.

    Use: to see whether clip's edge matters.
    Known: its gradient lies between those of none and clip by construction; docs/measured.md.
    Source: Colletti & Holzinger 2026, arXiv:2606.23932
    """
    return _plain("soft_clip", SoftClip())


def drift() -> ObjectiveConfig:
    """−r A + relu(x − α tanh(x/α)), x = (r−1)A, α 2 (A ≥ 0); x = log(r) A, α 0.6 (A < 0).

    Use: the closed form of a drift function found by meta-learning (DPO).
    Known: no independent figures known to us; docs/measured.md.
    Source: Lu 2022, arXiv:2210.05639
    """
    return _plain("drift", Drift())


def mdpo() -> ObjectiveConfig:
    """−r A + λ KL(π_θ ‖ π_old), λ = 1 / (1 − progress).

    Use: mirror descent: large steps first, ever smaller ones later.
    Known: needs many gradient steps per rollout; λ knows nothing of the KL that results.
    Source: Tomar 2020, arXiv:2005.09814
    """
    return ObjectiveConfig("mdpo", Ratio(), ReverseKL(), Schedule(shape="mdpo"))


PUBLISHED: tuple[Callable[[], ObjectiveConfig], ...] = (
    none,
    clip,
    kl_fixed,
    kl_adaptive,
    kl_clip,
    rllib,
    kl_hinge,
    kl_pi,
    kl_deadbeat,
    dual_clip,
    rollback,
    tr_ppo,
    tr_ppo_rb,
    truly_ppo,
    spo,
    klip,
    soft_clip,
    drift,
    mdpo,
)
"""The presets that come with the package, each a function whose docstring describes it."""

PRESETS: dict[str, ObjectiveConfig] = {make.__name__: make() for make in PUBLISHED}
"""Every objective by name, those of plug-ins included once they are loaded."""


class Said(NamedTuple):
    """What the docstring of a preset says."""

    formula: str
    use: str
    known: str
    source: str


def said_of(make: Callable[[], ObjectiveConfig]) -> Said:
    """The docstring of one of `PUBLISHED`, part by part."""
    text = make.__doc__ or ""
    formula, *_ = text.partition("\n\n")
    said = dict(re.findall(r"^ +(Use|Known|Source): (.+)$", text, re.MULTILINE))
    parts = (" ".join(formula.split()), said["Use"], said["Known"], said["Source"])
    return Said(*(part.removesuffix(".") for part in parts))


# --- by name ----------------------------------------------------------------------------------------------------------


def preset_named(name: str, asked: str = "objective") -> ObjectiveConfig:
    """The preset `name`, from an installed package's entry point where it is none of ours.

    Args:
        name: of a preset.
        asked: how the user gave it, for the message.

    Raises:
        ConfigError: unknown preset, or a package that cannot be loaded.
    """
    if name not in PRESETS:
        _load_entry_points(name)
    if name not in PRESETS:
        raise ConfigError(f"{asked} {name}: unknown preset{nearest(name, PRESETS)}")
    return PRESETS[name]


def part_named(family: type[Part], kind: str) -> type[Part]:
    """The settings class of the surrogate, penalty or controller `kind`.

    Raises:
        ConfigError: unknown kind, or a package that cannot be loaded.
    """
    known = KINDS[family]
    if kind not in known:
        _load_entry_points(kind)
    if kind not in known:
        hint = nearest(kind, known)
        raise ConfigError(f"{kind!r} is unknown{hint}; a plug-in's own: --plugin MODULE", "kind")
    return known[kind]


def _load_entry_points(name: str) -> None:
    """Load what installed packages offer under this very name, and nothing else of theirs.

    A name in a configuration or a checkpoint can so lead to no import but of a package that whoever installed it let
    declare that name.
    """
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
        try:
            offered = point.load()
            if isinstance(offered, FunctionType):
                offered()
        except Exception as error:
            where = point.dist.name if point.dist else point.value
            raise ConfigError(
                f"entry point {point.name!r} of {where!r} ({ENTRY_POINTS}) cannot be loaded: {error!r}; mend or "
                "uninstall that package"
            ) from error
        if isinstance(offered, ObjectiveConfig):
            PRESETS.setdefault(name, dataclasses.replace(offered, name=name))


def preset(name: str, **settings: Any) -> ObjectiveConfig:
    """The preset `name`, with single settings replaced in whichever part has them.

    Raises:
        ConfigError: unknown preset; no part, or more than one, has the setting; a value out of range.
    """
    config = preset_named(name)
    parts: dict[str, Part] = {key: getattr(config, key) for key in ("surrogate", "penalty", "controller")}
    changes: dict[str, dict[str, Any]] = {key: {} for key in parts}
    for setting_name, value in settings.items():
        owners = [key for key, part in parts.items() if setting_name in _names(part)]
        if len(owners) != 1:
            known = [n for part in parts.values() for n in _names(part)]
            hint = nearest(setting_name, known) if not owners else f" (in {' and '.join(owners)}: give the part itself)"
            raise ConfigError(
                f"{setting_name}={value!r}: objective {name!r} has not one setting of this name{hint}", setting_name
            )
        changes[owners[0]][setting_name] = value
    # All settings of a part at once, so that two that depend on each other may come in any order.
    replaced: dict[str, Any] = {key: dataclasses.replace(part, **changes[key]) for key, part in parts.items()}
    return dataclasses.replace(config, **replaced)


def _names(part: Part) -> list[str]:
    return [f.name for f in dataclasses.fields(part)]
