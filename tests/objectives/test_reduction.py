"""The mean over the rows that count."""

import pytest
import torch

from ppo_kl.objectives import valid_mean
from ppo_kl.objectives.reduction import valid_means

NAN, INF = float("nan"), float("inf")


def test_only_valid_rows_count():
    # (1 + 3) / 2
    assert valid_mean(torch.tensor([1.0, 100.0, 3.0]), torch.tensor([True, False, True])).item() == 2.0


def test_without_a_mask_every_row_counts():
    assert valid_mean(torch.tensor([1.0, 2.0, 6.0])).item() == 3.0


@pytest.mark.parametrize("garbage", [NAN, INF, -INF])
def test_what_stands_in_an_invalid_row_reaches_neither_value_nor_gradient(garbage):
    x = torch.tensor([1.0, garbage, 3.0], requires_grad=True)
    mean = valid_mean(x, torch.tensor([True, False, True]))
    mean.backward()
    assert mean.item() == 2.0
    assert x.grad.tolist() == [0.5, 0.0, 0.5]


def test_of_no_rows_the_mean_is_zero():
    x = torch.tensor([NAN, 1.0], requires_grad=True)
    mean = valid_mean(x, torch.zeros(2, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0.0
    assert x.grad.tolist() == [0.0, 0.0]


def test_a_nan_in_a_valid_row_is_not_hidden():
    assert valid_mean(torch.tensor([NAN, 1.0]), torch.ones(2, dtype=torch.bool)).isnan()


def test_several_means_at_once_are_those_of_each():
    samples = {"a": torch.tensor([1.0, NAN, 3.0]), "b": torch.tensor([5.0, INF, 8.0])}
    means = valid_means(samples, torch.tensor([True, False, True]))
    assert {name: x.item() for name, x in means.items()} == {"a": 2.0, "b": 6.5}
