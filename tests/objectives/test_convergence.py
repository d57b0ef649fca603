"""A problem whose answer is known: a bandit with two arms, a fixed λ, and the exact KL."""

import math

import pytest
import torch
from scipy.optimize import brentq

from ppo_kl.config.objective import Fixed, ForwardKL, ObjectiveConfig, Ratio, ReverseKL
from ppo_kl.objectives import Objective, StableCategorical

P0, P1 = 0.25, 0.75
"""π_old: of four samples, one pulls arm 0 and three pull arm 1, so that the mean over rows is the expectation."""
A0, A1 = 1.5, -0.5
"""Advantages of the arms; their mean under π_old is 0."""


def learn(objective: Objective) -> float:
    """The probability of arm 0 after minimising the objective to the end."""
    action = torch.tensor([0, 1, 1, 1])
    adv = torch.tensor([A0, A1, A1, A1], dtype=torch.float64)
    old = torch.tensor([P0, P1], dtype=torch.float64).log().expand(4, 2)
    pi_old = StableCategorical(logits=old, validate_args=False)
    logits = old[0].clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], lr=0.5, max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        pi = StableCategorical(logits=logits.expand(4, 2), validate_args=False)
        loss = objective(
            logp=pi.log_prob(action),
            logp_old=pi_old.log_prob(action),
            adv=adv,
            kl=objective.divergence(pi_old, pi),
        ).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(logits.detach().softmax(-1)[0])


@pytest.mark.parametrize("kl_lambda", [0.3, 1.0, 5.0])
def test_a_fixed_forward_penalty_reaches_the_regularised_optimum(kl_lambda):
    # maximise x A0 + (1 − x) A1 + λ (p0 log x + p1 log(1 − x)): A0 − A1 + λ (p0 / x − p1 / (1 − x)) = 0.
    optimum = brentq(lambda x: A0 - A1 + kl_lambda * (P0 / x - P1 / (1 - x)), 1e-9, 1 - 1e-9)
    objective = Objective(ObjectiveConfig("mine", Ratio(), ForwardKL(), Fixed(kl_lambda)))
    assert learn(objective) == pytest.approx(optimum, abs=1e-5)


@pytest.mark.parametrize("kl_lambda", [0.3, 1.0, 5.0])
def test_a_fixed_reverse_penalty_reaches_the_regularised_optimum(kl_lambda):
    # Closed form: π ∝ π_old · exp(A / λ), so the odds are those of π_old times exp((A0 − A1) / λ).
    odds = P0 / P1 * math.exp((A0 - A1) / kl_lambda)
    objective = Objective(ObjectiveConfig("mine", Ratio(), ReverseKL(), Fixed(kl_lambda)))
    assert learn(objective) == pytest.approx(odds / (1 + odds), abs=1e-5)
