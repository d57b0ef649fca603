"""What follows the progress of training: ε, the KL target, a scheduled λ; and the target per action dimension."""

import pytest
import torch

from ppo_kl.config.objective import Adaptive, ForwardKL, ObjectiveConfig, Ratio, Schedule
from ppo_kl.errors import ConfigError
from ppo_kl.objectives import Objective

ONE = torch.ones(1)


def slope_at(objective: Objective, ratio: float) -> float:
    """d loss / d log r of one sample with A = 1."""
    logp = torch.tensor([ratio]).log().requires_grad_()
    loss = objective(logp=logp, logp_old=0 * ONE, adv=ONE, kl=0 * ONE).loss
    return torch.autograd.grad(loss, logp)[0].item()


@pytest.mark.parametrize("name", ["clip", "dual_clip", "klip"])
def test_the_band_narrows_in_a_straight_line_and_never_closes(name):
    objective = Objective.from_preset(name, clip_eps=0.2, clip_eps_high=0.4, clip_eps_schedule="linear")
    # The upper edge: 1 + .4 (1 − p), and at the end a hundredth of it.
    for progress, edge in ((0.0, 1.4), (0.5, 1.2), (0.75, 1.1), (1.0, 1.004)):
        objective.schedule_(progress)
        assert slope_at(objective, edge - 0.002) == pytest.approx(-(edge - 0.002), rel=1e-4)
        assert slope_at(objective, edge + 0.002) == pytest.approx(0.0, abs=1e-6)
    # The lower edge has its own width: 1 − .2 (1 − p).
    objective.schedule_(0.5)
    logp = torch.tensor([0.91, 0.89]).log().requires_grad_()
    loss = objective(logp=logp, logp_old=torch.zeros(2), adv=-torch.ones(2), kl=torch.zeros(2)).loss
    assert torch.autograd.grad(loss, logp)[0].tolist() == pytest.approx([0.455, 0.0])


def test_the_clip_fraction_is_counted_in_the_band_of_the_moment():
    objective = Objective.from_preset("clip", clip_eps_schedule="linear")
    x = torch.tensor([1.15]).log()

    def fraction():
        return objective(logp=x, logp_old=0 * x, adv=ONE, kl=0 * x).metrics["ratio/clip_fraction"].item()

    assert fraction() == 0.0  # 1.15 < 1.2
    objective.schedule_(0.5)
    assert fraction() == 1.0  # 1.15 > 1.1


def test_a_constant_band_knows_nothing_of_progress():
    objective = Objective.from_preset("clip")
    objective.schedule_(1.0)
    assert slope_at(objective, 1.19) == pytest.approx(-1.19)


def test_the_target_falls_to_its_share_and_takes_its_band_along():
    objective = Objective.from_preset("kl_adaptive", kl_target=0.02, kl_target_final=0.1)
    # d (1 − (1 − .1) p)
    for progress, target in ((0.0, 0.02), (0.5, 0.011), (1.0, 0.002)):
        objective.schedule_(progress)
        assert float(objective.kl_target) == pytest.approx(target)
        assert [float(x) for x in objective.kl_band] == pytest.approx([target / 1.5, target * 1.5])


def test_the_controller_compares_with_the_target_that_was_in_force():
    objective = Objective.from_preset("kl_adaptive", kl_target=0.02, kl_target_final=0.1)
    objective.adapt_(torch.tensor(0.02), progress=1.0)  # on target during this rollout; the next one's is .002
    assert objective.kl_lambda.item() == 1.0
    objective.adapt_(torch.tensor(0.02))
    assert objective.kl_lambda.item() == 2.0


def test_the_hinge_begins_at_twice_the_target_of_the_moment():
    objective = Objective.from_preset("kl_hinge", kl_target=0.01, kl_target_final=0.5)
    x = torch.zeros(1)

    def wall():
        return objective(logp=x, logp_old=x, adv=x, kl=x + 0.03).penalty.item() - 0.03  # λ = 1

    assert wall() == pytest.approx(50 * 0.01**2, rel=1e-4)  # .03 − 2 · .01
    objective.schedule_(1.0)
    assert wall() == pytest.approx(50 * 0.02**2, rel=1e-4)  # .03 − 2 · .005


@pytest.mark.parametrize(
    ("schedule", "path"),
    [
        (Schedule(kl_lambda=2.0, shape="constant"), [2.0, 2.0, 2.0]),
        (Schedule(kl_lambda=2.0, shape="linear", kl_lambda_final=6.0), [2.0, 4.0, 6.0]),
        (Schedule(kl_lambda=2.0, shape="linear"), [2.0, 1.01, 0.02]),
        (Schedule(kl_lambda=2.0, shape="mdpo"), [2.0, 4.0, 2e4]),
    ],
    ids=["constant", "linear", "linear-to-a-hundredth", "mdpo"],
)
def test_a_scheduled_lambda_follows_progress_whatever_the_kl(schedule, path):
    objective = Objective(ObjectiveConfig("mine", Ratio(), ForwardKL(), schedule))
    found = [objective.kl_lambda.item()]
    for progress in (0.5, 1.0):
        objective.adapt_(torch.tensor(1e6), progress=progress)
        found.append(objective.kl_lambda.item())
    assert found == pytest.approx(path)
    objective.schedule_(0.0)  # training begins anew
    assert objective.kl_lambda.item() == path[0]


def test_progress_may_be_a_tensor_and_is_saved():
    first = Objective.from_preset("clip", clip_eps_schedule="linear")
    first.adapt_(torch.tensor(0.0), progress=torch.tensor(0.5))
    second = Objective.from_preset("clip", clip_eps_schedule="linear")
    second.load_state_dict(first.state_dict())
    assert slope_at(second, 1.11) == pytest.approx(0.0, abs=1e-6)


def test_a_target_per_dimension_is_multiplied_by_their_number():
    controller = Adaptive(kl_target=None, kl_target_per_dim=0.003)
    config = ObjectiveConfig("mine", Ratio(), ForwardKL(), controller)
    assert Objective(config, num_action_dims=17).kl_target == pytest.approx(0.051)
    preset = Objective.from_preset("kl_pi", num_action_dims=3, kl_target=None, kl_target_per_dim=0.01)
    assert preset.kl_target == pytest.approx(0.03)


def test_a_target_per_dimension_without_dimensions_is_refused():
    with pytest.raises(ConfigError, match=r"kl_target_per_dim=0\.003.*only Box actions"):
        Objective.from_preset("kl_adaptive", kl_target=None, kl_target_per_dim=0.003)


@pytest.mark.parametrize(("one", "other"), [(0.01, 0.003), (None, None)])
def test_the_target_is_given_in_exactly_one_way(one, other):
    with pytest.raises(ConfigError, match="give one of the two"):
        Adaptive(kl_target=one, kl_target_per_dim=other)


def test_an_end_of_lambda_belongs_to_the_straight_line():
    with pytest.raises(ConfigError, match=r"kl_lambda_final=3\.0.*'linear'"):
        Schedule(shape="mdpo", kl_lambda_final=3.0)


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan"), 30_000])
def test_progress_that_is_no_share_is_refused(progress):
    objective = Objective.from_preset("mdpo")
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        objective.adapt_(torch.tensor(0.01), progress=progress)
    objective.schedule_(torch.tensor(1.1))  # not read, but kept to the range
    assert objective.progress.item() == 1.0


@pytest.mark.parametrize("preset", ["clip", "dual_clip", "rollback", "klip", "soft_clip", "kl_clip"])
def test_a_trainers_own_schedule_of_eps_is_as_if_the_objective_had_been_made_with_it(preset):
    torch.manual_seed(0)
    rows = {name: torch.randn(64) for name in ("logp", "logp_old", "adv", "kl")}
    set_later, made_with_it = Objective.from_preset(preset), Objective.from_preset(preset, clip_eps=0.05)
    before = set_later(**rows).loss
    set_later.set_clip_eps_(0.05)
    assert set_later(**rows).loss == made_with_it(**rows).loss
    assert set_later(**rows).loss != before
    assert set_later(**rows).metrics["ratio/clip_fraction"] == made_with_it(**rows).metrics["ratio/clip_fraction"]


def test_an_eps_that_would_be_ignored_or_is_none_is_refused():
    for preset, settings in (("kl_adaptive", {}), ("spo", {}), ("clip", {"clip_eps_high": 0.3})):
        with pytest.raises(ValueError, match="no band with one constant"):
            Objective.from_preset(preset, **settings).set_clip_eps_(0.1)
    with pytest.raises(ValueError, match="no band with one constant"):
        Objective.from_preset("clip", clip_eps_schedule="linear").set_clip_eps_(0.1)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="clip_eps="):
            Objective.from_preset("clip").set_clip_eps_(wrong)


def test_an_eps_of_zero_lets_no_sample_improve():
    objective = Objective.from_preset("clip")
    objective.set_clip_eps_(0.0)
    logp = torch.tensor([0.1, -0.1], requires_grad=True)
    loss = objective(logp=logp, logp_old=torch.zeros(2), adv=torch.tensor([1.0, -1.0]), kl=torch.zeros(2)).loss
    assert torch.autograd.grad(loss, logp)[0].tolist() == [0.0, 0.0]
