"""The contract test: every objective of ours passes it, and each clause catches what it is there for."""

import itertools

import pytest
import torch

from ppo_kl.config.objective import (
    KINDS,
    Adaptive,
    Controller,
    Fixed,
    ForwardKL,
    NoPenalty,
    ObjectiveConfig,
    Penalty,
    Ratio,
    Schedule,
    Surrogate,
)
from ppo_kl.config.presets import PRESETS
from ppo_kl.objectives import Objective
from ppo_kl.objectives.controllers import CONTROLLERS
from ppo_kl.objectives.penalties import PENALTIES
from ppo_kl.testing import CLAUSES, check_objective

SHIPPED = {family: dict(kinds) for family, kinds in KINDS.items()}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_keeps_the_contract(name):
    check_objective(name)


def combinations():
    for surrogate, penalty, controller in itertools.product(
        *(SHIPPED[f].values() for f in (Surrogate, Penalty, Controller))
    ):
        if surrogate.trusts_forward_kl and penalty.direction != "forward":
            continue
        if penalty is NoPenalty:
            if controller is Fixed:
                yield surrogate, penalty, Fixed(0.0)
            continue
        yield surrogate, penalty, controller()


@pytest.mark.parametrize(
    "config",
    [ObjectiveConfig("mine", surrogate(), penalty(), controller) for surrogate, penalty, controller in combinations()],
    ids=lambda c: f"{c.surrogate.kind}-{c.penalty.kind}-{c.controller.kind}",
)
def test_any_surrogate_goes_with_any_penalty_and_any_controller(config):
    check_objective(config)


@pytest.mark.parametrize(
    "config",
    [
        ObjectiveConfig("mine", SHIPPED[Surrogate]["clip"](clip_eps_schedule="linear"), NoPenalty(), Fixed(0.0)),
        ObjectiveConfig("mine", Ratio(), ForwardKL(hinge=1000.0), Adaptive(kl_target_final=0.1)),
        ObjectiveConfig("mine", Ratio(), ForwardKL(), Adaptive(kl_target=None, kl_target_per_dim=0.003)),
        *(ObjectiveConfig("mine", Ratio(), ForwardKL(), Schedule(shape=s)) for s in ("constant", "linear", "mdpo")),
    ],
    ids=["narrowing", "hinge-and-falling-target", "per-dim", "constant", "linear", "mdpo"],
)
def test_so_does_every_schedule(config):
    check_objective(config)


class Broken(Objective):
    """One thing wrong at a time."""

    def __init__(self, fault, config=PRESETS["kl_adaptive"]):
        super().__init__(config)
        self.fault = fault

    def forward(self, *, logp, logp_old, adv, kl, valid=None):
        if self.fault == "broadcasts":
            logp, logp_old, adv, kl = (x.reshape(-1) for x in (logp, logp_old, adv, kl))
        if self.fault == "counts every row":
            valid = None
        if self.fault == "adapts in forward":
            super().adapt_(torch.tensor(1.0))
        if self.fault == "draws":
            torch.rand(1)
        if self.fault == "reads":
            float(kl.detach().mean())
        if self.fault == "stays in bfloat16":
            out = super().forward(logp=logp, logp_old=logp_old, adv=adv, kl=kl, valid=valid)
            return out._replace(loss=out.loss.to(logp.dtype))
        out = super().forward(logp=logp, logp_old=logp_old, adv=adv, kl=kl, valid=valid)
        if self.fault == "wrong sign":
            return out._replace(loss=-out.loss, surrogate=-out.surrogate, penalty=-out.penalty)
        if self.fault == "loss is not its parts":
            return out._replace(penalty=2 * out.penalty)
        if self.fault == "metric with a graph":
            out.metrics["mine"] = out.loss
        if self.fault == "adv learns":
            return out._replace(loss=out.loss + adv.mean(), surrogate=out.surrogate + adv.mean())
        if self.fault == "order":
            first = logp[0].detach() if valid is None and len(logp) == 64 else 0.0
            return out._replace(loss=out.loss + first, surrogate=out.surrogate + first)
        if self.fault == "unclamped":
            log_ratio = logp - logp_old if valid is None else torch.where(valid, logp - logp_old, 0.0)
            extra = log_ratio.exp().mean() - 1
            return out._replace(loss=out.loss + 0 * extra, surrogate=out.surrogate + 0 * extra)
        return out

    def adapt_(self, kl, *, progress=None):
        if self.fault == "new tensor":
            self.kl_lambda = self.kl_lambda.clone()
        if self.fault == "drops progress":
            progress = None
        if self.fault == "NaN moves":
            kl = torch.nan_to_num(torch.as_tensor(kl), nan=1.0)
        if self.fault == "no bounds":
            self._bounds = None
        super().adapt_(kl, progress=progress)

    def divergence(self, pi_old, pi):
        if self.fault == "averages over dimensions":
            return super().divergence(pi_old, pi) / 3
        return super().divergence(pi, pi_old) if self.fault == "other direction" else super().divergence(pi_old, pi)

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        if self.fault == "forgets":
            state["kl_lambda"] = torch.tensor(7.0)
        return state


FAULTS = {
    "broadcasts": "shapes that are not",
    "counts every row": "rows that do not count",
    "adapts in forward": "forward changes nothing",
    "draws": "forward changes nothing",
    "reads": "nothing is read",
    "stays in bfloat16": "half precision",
    "wrong sign": "policy gradient",
    "loss is not its parts": "surrogate plus penalty",
    "metric with a graph": "surrogate plus penalty",
    "adv learns": "no gradient reaches",
    "order": "order of rows",
    "unclamped": "extreme ratios",
    "new tensor": "in place",
    "NaN moves": "a kl that is none",
    "drops progress": "progress given to adapt",
    "averages over dimensions": "exact kl in the direction",
    "other direction": "exact kl in the direction",
    "no bounds": "within its bounds",
    "forgets": "never lost",
}


@pytest.mark.parametrize(("fault", "clause"), FAULTS.items())
def test_a_broken_objective_is_caught_by_the_clause_for_it(fault, clause):
    with pytest.raises(AssertionError, match=clause):
        check_objective(lambda: Broken(fault))


@pytest.mark.parametrize(
    ("penalty", "clause"),
    [
        (lambda kl, log_ratio: -kl, "costs more"),
        (lambda kl, log_ratio: 0 * kl, "costs more"),
        (lambda kl, log_ratio: kl + 1, "penalty at the old policy"),
    ],
)
def test_a_penalty_that_does_not_pull_back_is_caught(penalty, clause, monkeypatch):
    monkeypatch.setitem(PENALTIES, "forward_kl", penalty)
    with pytest.raises(AssertionError, match=clause):
        check_objective("kl_adaptive")


@pytest.mark.parametrize(
    "rule", [lambda initial, progress: initial - 1e6 * progress, lambda initial, progress: initial / (0.5 - progress)]
)
def test_a_schedule_that_leaves_the_numbers_is_caught(rule, monkeypatch):
    monkeypatch.setitem(
        CONTROLLERS, "schedule", lambda initial, progress, shape, kl_lambda_final: rule(initial, progress)
    )
    with pytest.raises(AssertionError, match=r"within its bounds: λ = .* after progress"):
        check_objective("mdpo")


def test_a_slow_controller_is_no_broken_one(monkeypatch):
    def slow(kl_lambda, kl, kl_target, memory, **gains):
        mean = torch.stack([0.9 * memory[0] + 0.1 * kl.clamp(max=1.0), memory[1]])
        return kl_lambda * torch.where(mean[0] > kl_target, 1.1, 0.9), mean

    monkeypatch.setitem(CONTROLLERS, "pi", slow)
    monkeypatch.setattr("ppo_kl.objectives.objective.handed_on", lambda part: [])
    check_objective(ObjectiveConfig("slow", Ratio(), ForwardKL(), SHIPPED[Controller]["pi"]()))


def test_the_broken_one_without_a_fault_passes():
    check_objective(lambda: Broken("none"))


def test_a_loss_with_the_whole_term_in_it_fails_where_lambda_is_zero():
    class Whole(Objective):
        def forward(self, *, logp, logp_old, adv, kl, valid=None):
            out = super().forward(logp=logp, logp_old=logp_old, adv=adv, kl=kl, valid=valid)
            masked = kl if valid is None else torch.where(valid, kl, 0.0)
            return out._replace(loss=out.loss + self.kl_lambda * masked.mean())

    with pytest.raises(AssertionError, match="infinite kl"):
        check_objective(lambda: Whole(PRESETS["none"]))


def test_every_clause_is_in_the_contract():
    import ppo_kl.testing

    clauses = {
        f
        for name, f in vars(ppo_kl.testing).items()
        if callable(f)
        and getattr(f, "__module__", "") == "ppo_kl.testing"
        and list(getattr(f, "__annotations__", {})) == ["make", "return"]
    }
    assert clauses == set(CLAUSES)
    assert len(CLAUSES) == 18
