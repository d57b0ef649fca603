"""The contract of an objective as a test: ours pass it, and a third party's can be held to it.

    from ppo_kl.testing import check_objective

    def test_mine_keeps_the_contract():
        check_objective("mine")

Needs torch alone, no test framework. Each clause is a function of its own below; a breach raises `AssertionError` that
says which clause, what was found and what was expected.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from ppo_kl.config.objective import Adapting, NoPenalty, ObjectiveConfig
from ppo_kl.config.presets import preset
from ppo_kl.objectives.divergence import policy_kl
from ppo_kl.objectives.objective import Objective

Make = Callable[[], Objective]
ROWS = 64
NUM_ACTION_DIMS = 3
"""For a `kl_target_per_dim`."""


def check_objective(objective: str | ObjectiveConfig | Make) -> None:
    """Hold an objective to the contract that every trainer relies on.

    Args:
        objective: a preset's name, a configuration, or a function that makes a fresh `Objective`.

    Raises:
        AssertionError: a clause is broken; the message begins with the clause's name.
    """
    if callable(objective):
        make = objective
    else:
        config = preset(objective) if isinstance(objective, str) else objective

        def make() -> Objective:
            return Objective(config, num_action_dims=NUM_ACTION_DIMS)

    for clause in CLAUSES:
        try:
            clause(make)
        except AssertionError as breach:
            raise AssertionError(f"{_name(clause)}: {breach}") from None
        except Exception as error:
            raise AssertionError(f"{_name(clause)}: {type(error).__name__}: {error}") from error


# --- the loss ---------------------------------------------------------------------------------------------------------


def the_loss_is_surrogate_plus_penalty_and_metrics_are_detached_numbers(make: Make) -> None:
    """`loss` = `surrogate` + `penalty`, all `[]`; metrics `[]`, finite, without gradient, the same keys every time."""
    objective = make()
    first, second = objective(**_samples(0)), objective(**_samples(1), valid=_some_rows())
    for out in (first, second):
        for part in (out.loss, out.surrogate, out.penalty):
            _require(part.shape == (), f"shape {tuple(part.shape)}, expected ()")
        _require_close(out.loss, out.surrogate + out.penalty, "loss against surrogate + penalty")
        for tag, value in out.metrics.items():
            _require(value.shape == (), f"metric {tag} has shape {tuple(value.shape)}, expected ()")
            _require(not value.requires_grad, f"metric {tag} has a gradient; detach it")
            _require(bool(value.isfinite()), f"metric {tag} is {value.item()}")
    _require(
        first.metrics.keys() == second.metrics.keys(),
        f"metrics {set(first.metrics) ^ set(second.metrics)} are not in every call",
    )


def at_the_old_policy_the_gradient_is_the_policy_gradient(make: Make) -> None:
    """r = 1, KL = 0 with zero gradient: d loss / d logp = −A / B."""
    samples = _samples(0)
    samples["logp"] = samples["logp_old"].clone().requires_grad_()
    samples["kl"] = torch.zeros(ROWS)
    (slope,) = torch.autograd.grad(make()(**samples).loss, samples["logp"])
    _require_close(slope, -samples["adv"] / ROWS, "gradient in logp against −A / B")


def no_gradient_reaches_what_was_collected(make: Make) -> None:
    """`logp_old` and `adv` are data."""
    samples = _samples(0)
    leaves = [samples[name].requires_grad_() for name in ("logp_old", "adv")]
    slopes = torch.autograd.grad(make()(**samples).loss, leaves, allow_unused=True)
    for name, slope in zip(("logp_old", "adv"), slopes, strict=True):
        _require(slope is None or not slope.any(), f"{name} has a gradient; detach it")


def rows_that_do_not_count_change_nothing(make: Make) -> None:
    """NaN or inf in a row with valid = False leaves loss, metrics and the gradient of the other rows as they are."""
    valid, samples = _some_rows(), _samples(0)
    kept = {name: x.detach()[valid].requires_grad_() for name, x in samples.items()}
    expected = make()(**kept)
    (expected_slope,) = torch.autograd.grad(expected.loss, kept["logp"])
    for garbage in (torch.nan, torch.inf, -torch.inf):
        spoilt = {name: torch.where(valid, x.detach(), garbage).requires_grad_() for name, x in samples.items()}
        out = make()(**spoilt, valid=valid)
        _require_close(out.loss, expected.loss, f"loss with {garbage} in rows that do not count")
        for tag, value in out.metrics.items():
            _require_close(value, expected.metrics[tag], f"metric {tag} with {garbage} in rows that do not count")
        (slope,) = torch.autograd.grad(out.loss, spoilt["logp"])
        _require_close(slope[valid], expected_slope, f"gradient with {garbage} in rows that do not count")
        _require(not slope[~valid].any(), f"rows that do not count have a gradient, with {garbage} in them")


def the_order_of_rows_does_not_matter(make: Make) -> None:
    """Samples are a set."""
    samples, order = _samples(0), torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    shuffled = {name: x[order] for name, x in samples.items()}
    _require_close(make()(**shuffled).loss, make()(**samples).loss, "loss of shuffled rows")


def extreme_ratios_leave_loss_and_gradient_finite(make: Make) -> None:
    """log r = ±100 with either sign of A, and an advantage of 0."""
    for log_ratio in (100.0, -100.0):
        for adv in (1.0, 0.0, -1.0):
            logp = torch.full((4,), log_ratio, requires_grad=True)
            kl = torch.full((4,), 50.0, requires_grad=True)
            loss = make()(logp=logp, logp_old=torch.zeros(4), adv=torch.full((4,), adv), kl=kl).loss
            (slope,) = torch.autograd.grad(loss, logp)
            where = f"at log r = {log_ratio:g}, A = {adv:g}"
            _require(bool(loss.isfinite()), f"loss {loss.item()} {where}")
            _require(bool(slope.isfinite().all()), f"gradient {slope[0].item()} {where}")


def half_precision_is_computed_in_float32(make: Make) -> None:
    """bfloat16 inputs give the loss of the same numbers in float32."""
    half = {name: x.detach().bfloat16() for name, x in _samples(0).items()}
    loss = make()(**half).loss
    _require(loss.dtype == torch.float32, f"loss is {loss.dtype} for bfloat16 inputs, expected float32")
    _require_close(loss, make()(**{name: x.float() for name, x in half.items()}).loss, "loss of bfloat16 inputs")


def shapes_that_are_not_one_row_per_sample_are_refused(make: Make) -> None:
    """`[B, 1]` against `[B]` would broadcast to `[B, B]`."""
    for name in ("logp", "logp_old", "adv", "kl"):
        samples = _samples(0)
        samples[name] = samples[name].detach()[:, None]
        try:
            make()(**samples)
        except ValueError as refusal:
            _require(str((ROWS, 1)) in str(refusal), f"the ValueError does not name the shape {(ROWS, 1)}: {refusal}")
        else:
            raise AssertionError(f"{name} of shape {(ROWS, 1)} beside {(ROWS,)} was accepted; raise ValueError")


# --- the state --------------------------------------------------------------------------------------------------------


def forward_changes_nothing(make: Make) -> None:
    """No buffer and no random stream moves in `forward`."""
    objective = make()
    before, random = copy.deepcopy(objective.state_dict()), torch.get_rng_state()
    for seed in range(3):
        objective(**_samples(seed)).loss.backward()
    for name, value in objective.state_dict().items():
        _require(torch.equal(value, before[name]), f"forward moved {name} from {before[name]} to {value}")
    _require(torch.equal(torch.get_rng_state(), random), "forward drew random numbers")


def adapt_moves_lambda_in_place(make: Make) -> None:
    """A compiled step or a captured graph reads λ where it was."""
    objective = make()
    addresses = {name: x.data_ptr() for name, x in objective.named_buffers()}
    for kl in _KLS:
        objective.adapt_(torch.tensor(kl), progress=0.5)
    for name, x in objective.named_buffers():
        _require(x.data_ptr() == addresses[name], f"{name} moved in memory; change it in place")


def a_kl_that_is_none_leaves_lambda(make: Make) -> None:
    """NaN: unchanged. +inf: as a huge KL. A negative one: as 0."""
    objective = make()
    objective.adapt_(torch.tensor(0.02))
    before = copy.deepcopy({name: x for name, x in objective.state_dict().items() if name != "nonfinite"})
    objective.adapt_(torch.tensor(torch.nan))
    for name, value in before.items():
        now = objective.state_dict()[name]
        _require(torch.equal(now, value), f"a KL of NaN moved {name} from {value} to {now}")
    for odd, plain in ((torch.inf, 1e30), (-0.01, 0.0)):
        first, second = make(), make()
        first.adapt_(torch.tensor(odd))
        second.adapt_(torch.tensor(plain))
        _require_close(first.kl_lambda, second.kl_lambda, f"λ after a KL of {odd} against one of {plain}")


def lambda_stays_finite_and_within_its_bounds(make: Make) -> None:
    """Whatever it is fed, for however long, and it can leave its lowest value again."""
    objective = make()
    controller = objective.config.controller
    low, high = (controller.min, controller.max) if isinstance(controller, Adapting) else (0.0, torch.inf)
    rounding = 1 + 1e-6

    def require_sound(after: str) -> None:
        value = objective.kl_lambda.item()
        _require(low / rounding <= value <= high * rounding, f"λ = {value} after {after}, allowed {low} to {high}")
        _require(value < torch.inf, f"λ = {value} after {after}")

    for kl in (*([0.0] * 300), *([1e9] * 300), *_KLS):
        objective.adapt_(torch.tensor(kl))
        require_sound(f"a KL of {kl}")
    for progress in (0.0, 0.25, 0.5, 0.99, 1.0):
        objective.schedule_(progress)
        require_sound(f"progress {progress}")
    if isinstance(controller, Adapting) and controller.min < controller.max and objective.follows_kl:
        for _ in range(300):
            objective.adapt_(torch.tensor(0.0))
        lowest = objective.kl_lambda.item()
        for _ in range(100):
            objective.adapt_(torch.tensor(1e9))
        _require(objective.kl_lambda.item() > lowest, f"λ = {lowest} does not rise in 100 rollouts with a KL of 1e9")


def progress_given_to_adapt_is_the_next_rollouts(make: Make) -> None:
    """`adapt_(kl, progress=p)` is `adapt_(kl)` and then `schedule_(p)`, and schedules begin anew at progress 0."""
    together, apart, fresh = make(), make(), make()
    together.adapt_(torch.tensor(0.02), progress=0.5)
    apart.adapt_(torch.tensor(0.02))
    apart.schedule_(0.5)
    for name, value in apart.state_dict().items():
        now = together.state_dict()[name]
        _require(torch.equal(now, value), f"adapt_(kl, progress=0.5) leaves {name} at {now}, schedule_(0.5) at {value}")
    if not fresh.follows_kl:
        together.schedule_(0.0)
        _require_close(together.kl_lambda, fresh.kl_lambda, "λ back at progress 0 against λ at the start")


def lambda_is_never_lost(make: Make) -> None:
    """What `state_dict` holds is enough to go on exactly."""
    first = make()
    for i, kl in enumerate(_KLS):
        first.adapt_(torch.tensor(kl), progress=i / 20)
    second = make()
    second.load_state_dict(first.state_dict())
    for kl in (0.02, 0.001, 0.05):
        for objective in (first, second):
            objective.adapt_(torch.tensor(kl))
        _require(
            torch.equal(first.kl_lambda, second.kl_lambda),
            f"after loading λ goes on to {second.kl_lambda.item()}, expected {first.kl_lambda.item()}",
        )


def a_penalty_that_is_off_leaves_an_infinite_kl_out(make: Make) -> None:
    """0 · inf is NaN: with λ = 0 for good the term is no part of the loss."""
    config = make().config
    off = isinstance(config.penalty, NoPenalty) or config.controller.idle
    if not off or config.surrogate.trusts_forward_kl:
        return
    samples = _samples(0)
    samples["kl"] = torch.full((ROWS,), torch.inf)
    loss = make()(**samples).loss
    _require(
        bool(loss.isfinite()),
        f"loss {loss.item()} with λ = 0 and an infinite KL; a surrogate that reads kl says so in its settings: "
        "trusts_forward_kl = True",
    )


# --- the divergence ---------------------------------------------------------------------------------------------------


def the_divergence_is_the_exact_kl_in_the_direction_it_names(make: Make) -> None:
    """`divergence` is `policy_kl` in `objective.direction`, per sample, summed over action dimensions."""
    objective, generator = make(), torch.Generator().manual_seed(2)
    old, new = (torch.randn(ROWS, 3, generator=generator) for _ in range(2))
    for build in (lambda x: Categorical(logits=x), lambda x: Independent(Normal(x, torch.ones_like(x)), 1)):
        pi_old, pi = build(old), build(new)
        expected = policy_kl(pi_old, pi, objective.direction)
        _require_close(objective.divergence(pi_old, pi), expected, f"divergence against the {objective.direction} KL")


def a_penalty_costs_more_the_further_the_policy_went(make: Make) -> None:
    """Where there is one: 0 at π_old, positive away from it; a negative penalty would reward divergence."""
    objective = make()
    still, near, far = (_samples(0) for _ in range(3))
    for samples, size in ((still, 0.0), (near, 0.1), (far, 1.0)):
        log_ratio = size * torch.linspace(-1, 1, ROWS)
        samples["logp"], samples["kl"] = samples["logp_old"] + log_ratio, 0.5 * log_ratio.square()
    costs = [objective(**samples).penalty.item() for samples in (still, near, far)]
    _require_close(torch.tensor(costs[0]), torch.tensor(0.0), "penalty at the old policy")
    if not isinstance(objective.config.penalty, NoPenalty) and objective.kl_lambda > 0:
        _require(0 < costs[1] < costs[2], f"penalty {costs[1]} near π_old and {costs[2]} far from it; it must rise")


# --- the device -------------------------------------------------------------------------------------------------------


def nothing_is_read_from_the_device(make: Make) -> None:
    """On the meta device there are no values to read, and a tensor of another device is an error."""
    objective = make().to("meta")
    samples = {name: x.detach().to("meta").requires_grad_() for name, x in _samples(0).items()}
    out = objective(**samples, valid=_some_rows().to("meta"))
    torch.autograd.grad(out.loss, samples["logp"])
    objective.adapt_(samples["kl"].detach().mean())
    objective.schedule_(0.5)
    found = {x.device.type for x in (out.loss, *out.metrics.values(), *objective.buffers())}
    _require(found == {"meta"}, f"tensors on {found - {'meta'}}; make them on the device of their inputs")


CLAUSES: tuple[Callable[[Make], None], ...] = (
    the_loss_is_surrogate_plus_penalty_and_metrics_are_detached_numbers,
    at_the_old_policy_the_gradient_is_the_policy_gradient,
    no_gradient_reaches_what_was_collected,
    rows_that_do_not_count_change_nothing,
    the_order_of_rows_does_not_matter,
    extreme_ratios_leave_loss_and_gradient_finite,
    half_precision_is_computed_in_float32,
    shapes_that_are_not_one_row_per_sample_are_refused,
    forward_changes_nothing,
    adapt_moves_lambda_in_place,
    progress_given_to_adapt_is_the_next_rollouts,
    a_kl_that_is_none_leaves_lambda,
    lambda_stays_finite_and_within_its_bounds,
    lambda_is_never_lost,
    a_penalty_that_is_off_leaves_an_infinite_kl_out,
    the_divergence_is_the_exact_kl_in_the_direction_it_names,
    a_penalty_costs_more_the_further_the_policy_went,
    nothing_is_read_from_the_device,
)
"""The contract, clause by clause."""

_KLS = (0.0, 1e-9, 0.003, 0.01, 0.0149, 0.02, 0.3, 10.0, 1e6, 0.005, 0.01)


def _samples(seed: int) -> dict[str, Tensor]:
    """Rows with ratios on both sides of the usual band, both signs of A, and KLs below and above usual radii."""
    generator = torch.Generator().manual_seed(seed)
    logp_old = -torch.rand(ROWS, generator=generator) - 1
    return {
        "logp": (logp_old + 0.5 * torch.randn(ROWS, generator=generator)).requires_grad_(),
        "logp_old": logp_old,
        "adv": torch.randn(ROWS, generator=generator),
        "kl": (0.1 * torch.rand(ROWS, generator=generator)).requires_grad_(),
    }


def _some_rows() -> Tensor:
    return torch.arange(ROWS) % 4 > 0


def _name(clause: Callable[..., Any]) -> str:
    return clause.__name__.replace("_", " ")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _require_close(found: Tensor, expected: Tensor, what: str) -> None:
    found, expected = found.detach().double(), expected.detach().double()
    worst = (found - expected).abs().nan_to_num(nan=torch.inf).argmax()
    _require(
        torch.allclose(found, expected, rtol=1e-5, atol=1e-6),
        f"{what}: {found.flatten()[worst].item()}, expected {expected.flatten()[worst].item()} (row {worst.item()})",
    )
