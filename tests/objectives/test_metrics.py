"""What a rollout's log says of its KL, from two distributions and an objective."""

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from ppo_kl.diagnostics.glossary import GLOSSARY
from ppo_kl.objectives import Objective, kl_metrics


def gaussian(mean, scale):
    return Independent(Normal(torch.tensor(mean), torch.tensor(scale)), 1)


# KL(N(0,1) ‖ N(1,1)) = ½ in the first row, 2 in the second (½ · 2²); the scales are equal.
OLD, NEW = gaussian([[0.0], [0.0]], [[1.0], [1.0]]), gaussian([[1.0], [2.0]], [[1.0], [1.0]])


def test_means_maxima_and_parts_by_hand():
    metrics = kl_metrics(Objective.from_preset("kl_fixed", kl_lambda=3.0), OLD, NEW)
    assert metrics["kl/forward"] == pytest.approx(1.25)
    assert metrics["kl/forward_max"] == pytest.approx(2.0)
    assert metrics["kl/mean_part"] == pytest.approx(1.25)
    assert metrics["kl/scale_part"] == pytest.approx(0.0)
    assert metrics["penalty/lambda"] == 3.0
    assert "kl/target_ratio" not in metrics


def test_rows_that_do_not_count_are_in_no_number():
    metrics = kl_metrics(Objective.from_preset("clip"), OLD, NEW, torch.tensor([True, False]))
    assert {metrics[f"kl/{tag}"].item() for tag in ("forward", "forward_max", "forward_p95", "mean_part")} == {0.5}


def test_the_controlled_kl_has_the_penaltys_direction():
    old, new = Categorical(torch.tensor([[0.5, 0.5]])), Categorical(torch.tensor([[0.9, 0.1]]))
    forward, reverse = kl_divergence(old, new).item(), kl_divergence(new, old).item()
    assert forward != pytest.approx(reverse, rel=0.1)
    for preset, expected in (("kl_adaptive", forward), ("mdpo", reverse)):
        metrics = kl_metrics(Objective.from_preset(preset), old, new)
        assert metrics["kl/controlled"] == pytest.approx(expected, rel=1e-5)
        assert (metrics["kl/forward"], metrics["kl/reverse"]) == pytest.approx((forward, reverse), rel=1e-5)


def test_with_a_target_its_band_and_the_ratio_to_it():
    metrics = kl_metrics(Objective.from_preset("kl_adaptive", kl_target=0.5), OLD, NEW)
    assert metrics["kl/target_ratio"] == pytest.approx(2.5)
    assert metrics["kl/target_high"] == pytest.approx(0.75)


def test_nothing_is_changed_and_no_gradient_flows():
    mean = torch.tensor([[1.0], [2.0]], requires_grad=True)
    objective = Objective.from_preset("kl_pi")
    before = {name: buffer.clone() for name, buffer in objective.state_dict().items()}
    metrics = kl_metrics(objective, OLD, Independent(Normal(mean, 1.0), 1))
    assert not any(number.requires_grad for number in metrics.values())
    assert all(torch.equal(before[name], buffer) for name, buffer in objective.state_dict().items())
    metrics["kl/controlled"].add_(1)
    assert metrics["kl/forward"] == pytest.approx(1.25)


def test_every_tag_is_in_the_glossary():
    assert kl_metrics(Objective.from_preset("kl_adaptive"), OLD, NEW).keys() <= GLOSSARY.keys()


def test_sequences_have_the_shape_of_what_counts():
    def sequences(mean):
        return Independent(Normal(torch.tensor(mean).view(1, 2, 1), 1.0), 1)

    old, new = sequences([0.0, 0.0]), sequences([1.0, 2.0])
    metrics = kl_metrics(Objective.from_preset("clip"), old, new, torch.ones(1, 2, dtype=torch.bool))
    assert metrics["kl/forward"] == pytest.approx(1.25)
    with pytest.raises(ValueError, match=r"\(1, 2\).*must both be \(B,\)"):
        kl_metrics(Objective.from_preset("clip"), old, new)


def test_action_dimensions_that_pass_for_samples_are_refused():
    plain = Normal(torch.zeros(4, 2), 1.0)
    with pytest.raises(ValueError, match=r"\(4, 2\).*must both be \(4,\).*Independent"):
        kl_metrics(Objective.from_preset("clip"), plain, plain, torch.ones(4, dtype=torch.bool))
