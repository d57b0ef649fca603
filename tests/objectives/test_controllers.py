"""The rules by which λ moves, as pure functions."""

import pytest
import torch

from ppo_kl.objectives.controllers import adaptive, fixed


def moved(kl, *, kl_lambda=1.0, kl_target=0.01, band=1.5, factor=2.0):
    return adaptive(torch.tensor(kl_lambda), torch.tensor(kl), kl_target=kl_target, band=band, factor=factor).item()


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.0, 0.5),
        (0.006, 0.5),  # below 0.01 / 1.5 = 0.00667
        (0.007, 1.0),
        (0.01, 1.0),
        (0.0149, 1.0),
        (0.0151, 2.0),  # above 0.01 · 1.5 = 0.015
        (10.0, 2.0),
        (float("inf"), 2.0),
    ],
)
def test_adaptive_is_the_rule_of_the_paper(kl, expected):
    assert moved(kl) == expected


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(1.0, 1.0), (1.0000001, 2.0), (0.25, 1.0), (0.24999999, 0.5)],
)
def test_on_an_edge_of_the_band_lambda_stays(kl, expected):
    # With d = 0.5 and b = 2 the edges are numbers that float32 holds exactly, 1 and 0.25; the others are neighbours.
    assert moved(kl, kl_target=0.5, band=2.0) == expected


@pytest.mark.parametrize("kl", [0.01 * 1.5, 0.01 / 1.5])
def test_on_an_edge_that_float32_rounds_lambda_stays(kl):
    assert moved(kl) == 1.0


def test_adaptive_multiplies_and_divides_by_its_factor():
    assert moved(1.0, kl_lambda=3.0, factor=1.5) == pytest.approx(4.5)
    assert moved(0.0, kl_lambda=3.0, factor=1.5) == pytest.approx(2.0)


def test_a_band_of_one_always_moves_off_target():
    assert moved(0.0101, band=1.0) == 2.0
    assert moved(0.0099, band=1.0) == 0.5
    assert moved(0.01, band=1.0) == 1.0


@pytest.mark.parametrize("kl", [0.0, 1.0, float("inf"), float("nan")])
def test_fixed_never_moves(kl):
    assert fixed(torch.tensor(3.0), torch.tensor(kl)).item() == 3.0


def test_a_rule_leaves_its_arguments_alone():
    kl_lambda, kl = torch.tensor(1.0), torch.tensor(5.0)
    adaptive(kl_lambda, kl, kl_target=0.01, band=1.5, factor=2.0)
    assert (kl_lambda.item(), kl.item()) == (1.0, 5.0)
