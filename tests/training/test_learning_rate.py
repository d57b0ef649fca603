"""The learning rate by the KL: the published rule, at either cadence, apart from the objective's own target."""

import pytest
import torch
from learner_parts import batch_of, make

from ppo_kl.batch import minibatches
from ppo_kl.config.training import KLStop
from ppo_kl.objectives import policy_kl
from ppo_kl.training.learning_rate import kl_adaptive_lr


@pytest.mark.parametrize(
    ("kl", "lr", "expected"),
    [
        (0.021, 3e-4, 2e-4),  # above 2 · .01: / 1.5
        (0.02, 3e-4, 3e-4),
        (0.01, 3e-4, 3e-4),
        (0.005, 3e-4, 3e-4),
        (0.0049, 2e-4, 3e-4),  # below .01 / 2: · 1.5
        (0.0, 2e-4, 2e-4),  # nothing has moved yet
        (-3e-9, 2e-4, 2e-4),
        (float("inf"), 3e-4, 2e-4),
        (float("nan"), 3e-4, 3e-4),
        (1.0, 1.2e-5, 1e-5),
        (0.001, 9e-3, 1e-2),
    ],
)
def test_the_rule_is_the_published_one(kl, lr, expected):
    def rsl_rl(kl_mean, lr, desired_kl=0.01):  # as its lines read; NaN compares false there too
        if kl_mean > desired_kl * 2.0:
            return max(1e-5, lr / 1.5)
        if kl_mean < desired_kl / 2.0 and kl_mean > 0.0:
            return min(1e-2, lr * 1.5)
        return lr

    found = kl_adaptive_lr(torch.tensor([lr, lr]), torch.tensor(kl), 0.01)
    assert found.tolist() == pytest.approx([expected, expected], rel=1e-5)
    assert found[0].item() == pytest.approx(rsl_rl(kl, lr), rel=1e-5)


def test_rounding_is_no_sign_that_the_steps_are_small():
    # On purpose unlike the published rule, which would raise the rate at the first minibatch of every update: there the
    # policy has not moved, and whether its KL rounds to 3e-9 or to 0 is chance.
    assert kl_adaptive_lr(torch.tensor([2e-4, 2e-4]), torch.tensor(3e-9), 0.01)[0].item() == pytest.approx(2e-4)


def test_the_critics_rate_keeps_its_proportion():
    found = kl_adaptive_lr(torch.tensor([1e-3, 2e-3]), torch.tensor(1.0), 0.01)
    assert found.tolist() == pytest.approx([1e-3 / 1.5, 2e-3 / 1.5])
    at_the_edge = kl_adaptive_lr(torch.tensor([1.2e-5, 2.4e-5]), torch.tensor(1.0), 0.01)
    assert at_the_edge.tolist() == pytest.approx([1e-5, 2e-5])


LARGE_STEPS = {"num_epochs": 3, "minibatch_size": 10, "lr": 5e-3}


def adaptive_learner(**settings):
    return make(**{**LARGE_STEPS, "lr_schedule": "kl_adaptive", "lr_kl_target": 0.003, **settings})


def kl_of(learner, batch, index):
    with torch.no_grad():
        old, new = batch.params_old[index], learner.policy(batch.obs[index]).params
    return policy_kl(learner.family.build(old), learner.family.build(new)).mean()


@pytest.mark.parametrize("cadence", ["minibatch", "epoch"])
def test_an_update_moves_it_before_a_step_or_after_an_epoch(cadence):
    learner, plain = adaptive_learner(lr_kl_cadence=cadence), make(**LARGE_STEPS)
    batch = batch_of(learner, 40)
    learner.update(batch, 0.0)
    lr, path = torch.tensor([5e-3, 5e-3]), []
    for _ in range(3):
        kls = []
        for index, valid in zip(*minibatches(torch.arange(40), 10, plain.generator), strict=True):
            kls.append(kl_of(plain, batch, index))
            if cadence == "minibatch":
                lr = kl_adaptive_lr(lr, kls[-1], 0.003)
            plain._lr.copy_(lr)
            plain.step(batch.rows(index, valid))
        if cadence == "epoch":
            lr = kl_adaptive_lr(lr, torch.stack(kls).mean(), 0.003)
        path.append(lr[0].item())
    assert len(set(path)) > 1, "a rate that never moves proves nothing"
    torch.testing.assert_close(learner._lr, lr)
    torch.testing.assert_close(learner.parameters.flat, plain.parameters.flat, rtol=1e-5, atol=1e-7)


def test_it_goes_on_from_update_to_update_and_through_a_checkpoint():
    learner, other = adaptive_learner(), adaptive_learner()
    batch = batch_of(learner, 40)
    lr = learner.update(batch, 0.0)["optim/lr"].item()
    assert lr != pytest.approx(5e-3)
    other.load_state_dict(learner.state_dict())
    assert other.update(batch, 0.5)["optim/lr"].item() == learner.update(batch, 0.5)["optim/lr"].item()


def test_an_actor_that_is_stopped_moves_it_no_more():
    stop = KLStop("before_step", threshold=1e-9, stops="actor")
    learner = adaptive_learner(kl_stop=stop)
    assert learner.update(batch_of(learner, 40), 0.0)["optim/lr"].item() == pytest.approx(5e-3)


def test_it_and_the_objectives_controller_have_targets_of_their_own():
    # The same update twice, the objective's target far off in one of them: the learning rate does not notice.
    from ppo_kl.objectives import Objective

    rates = []
    for kl_target in (1e-3, 10.0):
        learner = adaptive_learner(objective=Objective.from_preset("kl_adaptive", kl_target=kl_target))
        rates.append(learner.update(batch_of(learner, 40), 0.0)["optim/lr"].item())
    assert rates[0] == rates[1]
