"""One update: against plain PyTorch, against faults, and against every setting that shapes it."""

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from learner_parts import FAMILIES, batch_of, make, seeded
from torch import Tensor, nn

from ppo_kl.batch import Batch, minibatches
from ppo_kl.config.objective import Adaptive, Fixed, ForwardKL, ObjectiveConfig, Ratio, ReverseKL
from ppo_kl.config.presets import PRESETS
from ppo_kl.config.training import KLStop
from ppo_kl.diagnostics.measure import kl_before, measure
from ppo_kl.errors import CheckpointError
from ppo_kl.objectives import Objective, policy_kl
from ppo_kl.policies.families import CategoricalFamily
from ppo_kl.training.learner import Learner, value_loss

NAN, INF = float("nan"), float("inf")
both = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def weights(learner: Learner) -> Tensor:
    return learner.parameters.flat.detach().clone()


def actor_and_critic(learner: Learner) -> tuple[Tensor, Tensor]:
    flat, n = weights(learner), learner.parameters.num_actor
    return flat[:n], flat[n:]


def everything(learner: Learner) -> dict[str, Tensor]:
    """Whatever a step may move: weights, Adam's moments and step counts, by name."""
    state = learner.state_dict()
    parts = {f"{k}.{name}": x for k in ("policy", "exp_avg", "exp_avg_sq") for name, x in state[k].items()}
    return {**parts, "adam_steps": state["adam_steps"]}


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def move(learner: Learner, size: float) -> None:
    """Take the policy away from where it is."""
    with torch.no_grad():
        learner.parameters.flat.add_(size * torch.randn(len(learner.parameters.flat), generator=seeded(4)))


def one_step(learner: Learner, batch: Batch) -> None:
    """A gradient step on the whole batch."""
    learner.step(batch)


def gradient(learner: Learner, batch: Batch) -> Tensor:
    """Of the whole loss, where the learner is now."""
    total = learner.loss(learner.policy(batch.obs), batch).total
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(learner.policy.parameters()))])


# --- against plain PyTorch --------------------------------------------------------------------------------------------


def plain_terms(family, params_old: Tensor, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log π(a), KL(π_old ‖ π) and entropy of each sample, written out."""
    if isinstance(family, CategoricalFamily):
        log_old, log_new = params_old.log_softmax(-1), params.log_softmax(-1)
        logp = log_new.gather(1, action[:, None])[:, 0]
        return logp, (log_old.exp() * (log_old - log_new)).sum(-1), -(log_new.exp() * log_new).sum(-1)
    (mean_old, log_std_old), (mean, log_std) = params_old.chunk(2, -1), params.chunk(2, -1)
    logp = (-0.5 * ((action - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
    spread = (log_std_old.exp() ** 2 + (mean_old - mean) ** 2) / (2 * log_std.exp() ** 2)
    return (
        logp,
        (log_std - log_std_old + spread - 0.5).sum(-1),
        (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1),
    )


class PlainPPO:
    """The same update as anybody would write it: modules, torch.optim.Adam, clip_grad_norm_, one line per formula."""

    def __init__(self, learner: Learner, *, kl_lambda: float, clip_eps: float = 1e9) -> None:
        self.config, self.family = learner.config, learner.family
        self.policy = copy.deepcopy(learner.policy)
        self.generator = torch.Generator()
        self.generator.set_state(learner.generator.get_state())
        self.kl_lambda, self.clip_eps = kl_lambda, clip_eps
        critic_lr = self.config.critic_lr or self.config.lr
        groups = [
            {"params": self.policy.actor.parameters(), "lr": self.config.lr},
            {"params": self.policy.critic.parameters(), "lr": critic_lr},
        ]
        self.optimizer = torch.optim.Adam(groups, eps=self.config.adam_eps)
        self.norms: list[float] = []

    def update(self, batch: Batch, lr_factor: float = 1.0) -> None:
        config, policy = self.config, self.policy
        for group in self.optimizer.param_groups:
            group["lr"] *= lr_factor
        valid_rows = batch.valid.nonzero()[:, 0]
        for _ in range(config.num_epochs):
            for index, counts in zip(*minibatches(valid_rows, config.minibatch_size, self.generator), strict=True):
                b = Batch(*(x[index[counts]] for x in batch[:8]))
                out = policy(b.obs)
                logp, kl, entropy = plain_terms(self.family, b.params_old, out.params, b.action)
                adv = b.adv
                if config.advantage_norm == "minibatch":
                    adv = (adv - adv.mean()) / adv.std(correction=0)
                ratio = (logp - b.logp_old).exp()
                clipped = ratio.clamp(1 - self.clip_eps, 1 + self.clip_eps)
                surrogate = -torch.min(ratio * adv, clipped * adv).mean()
                loss = surrogate + self.kl_lambda * kl.mean() + config.vf_coef * ((out.value - b.ret) ** 2).mean()
                loss = loss - config.ent_coef * entropy.mean()
                self.optimizer.zero_grad()
                loss.backward()
                if config.max_grad_norm is not None:
                    parts = [policy] if config.clip_grad == "joint" else [policy.actor, policy.critic]
                    for part in parts:
                        norm = nn.utils.clip_grad_norm_(part.parameters(), config.max_grad_norm)
                        self.norms.append(norm.item())
                self.optimizer.step()

    def weights(self) -> dict[str, Tensor]:
        return {name: x.detach() for name, x in self.policy.named_parameters()}


@both
@pytest.mark.parametrize(
    ("objective", "kl_lambda", "clip_eps"),
    [("none", 0.0, 1e9), ("clip", 0.0, 0.2), ("kl_fixed", 1.0, 1e9), ("kl_clip", 1.0, 0.2)],
)
def test_an_update_equals_its_derivation_in_plain_pytorch(family, objective, kl_lambda, clip_eps):
    # 10 rows in minibatches of at most 4 (4, 3 and 3: two are padded), 4 epochs: 12 steps.
    learner = make(family, objective, minibatch_size=4, lr=5e-3, ent_coef=0.02, max_grad_norm=0.5)
    batch = batch_of(learner)
    plain = PlainPPO(learner, kl_lambda=kl_lambda, clip_eps=clip_eps)
    plain.update(batch)
    learner.update(batch, 0.0)
    assert max(plain.norms) > 0.5  # something was clipped
    torch.testing.assert_close(learner.state_dict()["policy"], plain.weights(), rtol=0, atol=1e-6)


@both
@pytest.mark.parametrize(
    "settings",
    [
        {"critic_lr": 2e-4},
        {"clip_grad": "apart", "max_grad_norm": 0.3},
        {"max_grad_norm": None},
        {"max_grad_norm": 1e-3},
        {"adam_eps": 1e-8},
        {"vf_coef": 2.0},
        {"advantage_norm": "minibatch", "minibatch_size": 5},
    ],
    ids=str,
)
def test_each_setting_does_what_it_does_in_plain_pytorch(family, settings):
    learner = make(family, **settings)
    batch = batch_of(learner)
    plain = PlainPPO(learner, kl_lambda=1.0)
    plain.update(batch)
    learner.update(batch, 0.0)
    torch.testing.assert_close(learner.state_dict()["policy"], plain.weights(), rtol=0, atol=2e-6)


def test_adam_goes_on_from_one_update_to_the_next():
    learner = make()
    batch = batch_of(learner)
    plain = PlainPPO(learner, kl_lambda=1.0)
    for _ in range(3):
        plain.update(batch)
        learner.update(batch, 0.0)
    torch.testing.assert_close(learner.state_dict()["policy"], plain.weights(), rtol=0, atol=2e-6)
    assert learner.state_dict()["adam_steps"].tolist() == [12, 12]


def test_a_linear_learning_rate_falls_with_progress_for_actor_and_critic():
    learner = make(lr_schedule="linear", lr=1e-3, critic_lr=5e-4)
    batch = batch_of(learner)
    plain = PlainPPO(learner, kl_lambda=1.0)
    plain.update(batch, lr_factor=0.25)
    metrics = learner.update(batch, 0.75)
    torch.testing.assert_close(learner.state_dict()["policy"], plain.weights(), rtol=0, atol=1e-6)
    assert metrics["optim/lr"].item() == pytest.approx(2.5e-4)


def test_a_linear_learning_rate_starts_whole_and_is_never_negative():
    learner = make(lr_schedule="linear")
    batch = batch_of(learner)
    assert learner.update(batch, 0.0)["optim/lr"].item() == pytest.approx(1e-3)
    before = weights(learner)
    assert learner.update(batch, 1.0)["optim/lr"].item() == 0.0
    assert torch.equal(weights(learner), before)


def test_a_constant_learning_rate_does_not_care_about_progress():
    learner = make()
    assert learner.update(batch_of(learner), 0.9)["optim/lr"].item() == pytest.approx(1e-3)


# --- the swap point ---------------------------------------------------------------------------------------------------


@both
def test_swapping_the_objective_leaves_the_first_gradient_as_it_is(family):
    # At θ_old nothing is clipped and the KL is flat, so every objective sees the same samples the same way.
    gradients = {}
    for name in PRESETS:
        learner = make(family, name)
        gradients[name] = gradient(learner, batch_of(learner))
    for name, grad in gradients.items():
        torch.testing.assert_close(grad, gradients["none"], rtol=1e-5, atol=1e-6, msg=name)


@both
def test_without_lambda_a_whole_update_is_that_of_the_plain_ratio(family):
    results = []
    for objective in ("none", Objective.from_preset("kl_fixed", kl_lambda=0.0)):
        learner = make(family, objective, minibatch_size=4, lr=5e-3)
        learner.update(batch_of(learner), 0.0)
        results.append(everything(learner))
    assert same_bits(*results)


def test_swapping_the_objective_moves_no_random_stream():
    states = []
    for name in PRESETS:
        learner = make(objective=name, minibatch_size=4)
        learner.update(batch_of(learner), 0.0)
        states.append(learner.generator.get_state())
    assert all(torch.equal(state, states[0]) for state in states)
    assert not torch.equal(states[0], make().generator.get_state())


@pytest.mark.parametrize("name", PRESETS)
def test_an_update_leaves_the_objective_and_torchs_random_stream_as_they_were(name):
    learner = make(objective=name)
    batch, before = batch_of(learner), {k: x.clone() for k, x in learner.objective.state_dict().items()}
    stream = torch.get_rng_state()
    learner.update(batch, 0.0)
    assert same_bits(dict(learner.objective.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), stream)


def test_an_update_leaves_the_batch_and_puts_no_gradient_on_it():
    learner = make()
    batch = batch_of(learner)
    batch = batch._replace(**{k: getattr(batch, k).requires_grad_() for k in ("params_old", "logp_old", "adv")})
    copies = [x.detach().clone() for x in batch[:8]]
    learner.update(batch, 0.0)
    assert all(torch.equal(x, y) for x, y in zip(batch[:8], copies, strict=True))
    assert all(x.grad is None for x in (batch.params_old, batch.logp_old, batch.adv))


# --- the loss ---------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("objective", ["clip", "kl_adaptive"])
def test_every_parameter_receives_a_gradient(family, objective):
    learner = make(family, objective)
    grad = gradient(learner, batch_of(learner, 64))
    for name, piece in learner.parameters.split(grad).items():
        assert (piece != 0).all(), name


@both
def test_the_loss_is_the_objective_plus_the_weighted_value_loss_minus_the_weighted_entropy(family):
    learner = make(family, "kl_fixed", vf_coef=0.7, ent_coef=0.3)
    batch = batch_of(learner)
    move(learner, 0.1)
    output = learner.policy(batch.obs)
    total, policy, value, entropy, mean_kl, _ = learner.loss(output, batch)
    logp, kl, entropies = plain_terms(family, batch.params_old, output.params, batch.action)
    assert kl.mean() > 1e-3
    torch.testing.assert_close(policy, -((logp - batch.logp_old).exp() * batch.adv).mean() + kl.mean())
    torch.testing.assert_close(value, (output.value - batch.ret).square().mean())
    torch.testing.assert_close(entropy, -entropies.mean())
    torch.testing.assert_close(total, policy + 0.7 * value - 0.3 * entropies.mean())
    torch.testing.assert_close(mean_kl, kl.mean(), rtol=1e-4, atol=1e-6)
    assert not mean_kl.requires_grad


def test_the_kl_that_can_stop_an_update_is_the_forward_one_whatever_the_penalty():
    learner = make(objective=Objective(ObjectiveConfig("mine", Ratio(), ReverseKL(), Fixed())))
    batch = batch_of(learner)
    move(learner, 0.3)
    output = learner.policy(batch.obs)
    mean_kl = learner.loss(output, batch).kl
    pi_old, pi = (learner.family.build(p) for p in (batch.params_old, output.params))
    forward, reverse = (policy_kl(pi_old, pi, d).mean() for d in ("forward", "reverse"))
    assert abs(forward - reverse) > 0.01 * forward
    torch.testing.assert_close(mean_kl, forward)


@pytest.mark.parametrize(
    ("value", "ret", "loss", "slope"),
    [
        # V_old = 0, c = 0.2
        (0.1, 2.0, 3.61, -3.8),  # within reach: (0.1 − 2)²
        (1.0, 2.0, 3.24, 0.0),  # moved too far towards the return: (0.2 − 2)² counts, and pulls no more
        (1.0, -1.0, 4.0, 4.0),  # moved away from it: (1 + 1)² counts, and pulls back
        (-1.0, -2.0, 3.24, 0.0),
        (-1.0, 1.0, 4.0, -4.0),
    ],
)
def test_a_clipped_value_loss_stops_falling_where_the_value_moved_too_far(value, ret, loss, slope):
    v = torch.tensor([value], requires_grad=True)
    out = value_loss(v, torch.zeros(1), torch.tensor([ret]), 0.2)
    out.sum().backward()
    assert out.item() == pytest.approx(loss)
    assert v.grad.item() == pytest.approx(slope)


def test_an_unclipped_value_loss_is_the_squared_error():
    loss = value_loss(torch.tensor([1.0, -1.0]), torch.zeros(2), torch.tensor([2.0, 1.0]), None)
    assert loss.tolist() == [1.0, 4.0]


def test_the_value_clip_is_part_of_the_update():
    learner = make(value_clip=0.01)
    batch = batch_of(learner)
    batch = batch._replace(value_old=batch.value_old - torch.sign(batch.ret - batch.value_old))
    # Every value stands 1 nearer to its return than the old one: all are beyond the clip, and none may pull.
    batch = batch._replace(ret=batch.value_old + 2 * torch.sign(batch.ret - batch.value_old))
    total = learner.loss(learner.policy(batch.obs), batch).total
    critic = torch.autograd.grad(total, list(learner.policy.critic.parameters()), allow_unused=True)
    assert all((g == 0).all() for g in critic)


@both
def test_the_entropy_bonus_raises_the_entropy(family):
    entropies = []
    for ent_coef in (0.0, 0.1):
        learner = make(family, "none", ent_coef=ent_coef, num_epochs=20, lr=1e-2)
        move(learner, 0.3)  # the entropy of equally likely actions could not rise
        batch = batch_of(learner)
        batch = batch._replace(adv=torch.zeros_like(batch.adv))
        before = family.build(batch.params_old).entropy().mean()
        learner.update(batch, 0.0)
        entropies.append((family.build(learner.policy(batch.obs).params).entropy().mean() - before).item())
    assert entropies[0] == pytest.approx(0.0, abs=1e-6)
    assert entropies[1] > 0.05


def test_advantages_are_normalised_over_the_rows_that_count_in_their_minibatch():
    learner = make(objective="none", advantage_norm="minibatch")
    batch = batch_of(learner, 4)._replace(adv=torch.tensor([1.0, 3.0, 5.0, 1e6]))
    batch = batch._replace(valid=torch.tensor([True, True, True, False]))
    output = learner.policy(batch.obs)
    (slope,) = torch.autograd.grad(learner.loss(output, batch).policy, output.params)
    # mean 3, σ = √(8/3): −√1.5, 0, √1.5
    expected = batch._replace(adv=torch.tensor([-math.sqrt(1.5), 0.0, math.sqrt(1.5), 7.0]))
    plain = make(objective="none", advantage_norm="none")
    output = plain.policy(batch.obs)
    (expected_slope,) = torch.autograd.grad(plain.loss(output, expected).policy, output.params)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("adv", [0.1, 1000.1, -3.3])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_advantages_that_are_all_equal_give_no_policy_gradient_once_normalised(adv, n):
    learner = make(objective="none", advantage_norm="minibatch", vf_coef=0.0)
    batch = batch_of(learner, n)
    grad = gradient(learner, batch._replace(adv=torch.full((n,), adv)))
    assert grad.abs().max() < 1e-3


# --- rows that count --------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("garbage", [NAN, INF, 1e30])
def test_whatever_stands_in_rows_that_do_not_count_the_update_is_the_same(family, garbage):
    learner, spoilt = (make(family, minibatch_size=4, advantage_norm="minibatch") for _ in range(2))
    batch, valid = batch_of(learner, 14), torch.arange(14) % 4 > 0
    metrics = learner.update(Batch(*(x[valid] for x in batch[:8])), 0.0)

    def spoil(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        rows = valid.view(-1, *[1] * (x.dim() - 1))
        return torch.where(rows, x, garbage)

    spoilt_metrics = spoilt.update(Batch(*(spoil(x) for x in batch[:7]), valid), 0.0)
    assert same_bits(everything(learner), everything(spoilt))
    assert same_bits(metrics, spoilt_metrics)
    assert metrics["optim/skipped"].item() == 0


def test_a_batch_without_a_row_that_counts_changes_nothing():
    # A rollout of one step that only reset the environment.
    learner = make()
    batch = batch_of(learner, 2)
    batch = batch._replace(valid=torch.zeros(2, dtype=torch.bool))
    before = everything(learner)
    metrics = learner.update(batch, 0.0)
    assert same_bits(everything(learner), before)
    assert metrics["optim/steps"].item() == 0


# --- faults -----------------------------------------------------------------------------------------------------------


def spoil_one_gradient_element(learner: Learner, value: float, element: int) -> Callable[[], None]:
    """Every gradient has a fault from now on; answers what ends that."""
    real = learner.parameters.gradient

    def spoiled(loss: Tensor) -> Tensor:
        grad = real(loss)
        grad[element] = value
        return grad

    learner.parameters.gradient = spoiled
    return lambda: setattr(learner.parameters, "gradient", real)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("clip_grad", ["joint", "apart"])
@pytest.mark.parametrize("element", [0, -1], ids=["actor", "critic"])
def test_a_single_element_of_the_gradient_that_is_not_finite_leaves_everything_as_it_was(value, clip_grad, element):
    learner, untouched = make(clip_grad=clip_grad), make(clip_grad=clip_grad)
    batch = batch_of(learner)
    for healthy in (learner, untouched):
        one_step(healthy, batch)
    before = everything(learner)

    mend = spoil_one_gradient_element(learner, value, element)
    for fault in (1, 2, 3):
        one_step(learner, batch)
        assert same_bits(everything(learner), before)
        assert learner.skipped_in_a_row.item() == fault
    mend()

    # Adam's memory holds nothing of the fault: the next step is the one it would have been.
    one_step(learner, batch)
    one_step(untouched, batch)
    assert learner.skipped_in_a_row.item() == 0
    assert same_bits(everything(learner), everything(untouched))
    assert not same_bits(everything(learner), before)


@pytest.mark.parametrize("value", [NAN, INF])
def test_an_unlimited_gradient_norm_does_not_open_the_gate(value):
    learner = make(max_grad_norm=None)
    batch, before = batch_of(learner), everything(learner)
    spoil_one_gradient_element(learner, value, 0)
    one_step(learner, batch)
    assert same_bits(everything(learner), before)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_is_not_trusted_even_with_a_finite_gradient(value, monkeypatch):
    learner = make()
    batch, before, loss = batch_of(learner), everything(learner), learner.loss

    def spoilt(output, minibatch):
        losses = loss(output, minibatch)
        return losses._replace(total=losses.total + value)

    monkeypatch.setattr(learner, "loss", spoilt)
    one_step(learner, batch)
    assert same_bits(everything(learner), before)
    assert learner.skipped_in_a_row.item() == 1


def test_only_the_minibatches_that_meet_a_fault_are_skipped_and_counted():
    # 12 rows in 3 minibatches, 4 epochs: the row that is NaN spoils one minibatch of each epoch.
    learner = make(minibatch_size=4)
    batch = batch_of(learner, 12)
    batch.adv[5] = NAN
    before = weights(learner)
    metrics = learner.update(batch, 0.0)
    assert metrics["optim/skipped"].item() == 4
    assert metrics["optim/steps"].item() == 8
    assert all(value.isfinite() for value in metrics.values())
    assert weights(learner).isfinite().all()
    assert not torch.equal(weights(learner), before)
    assert learner.state_dict()["adam_steps"].tolist() == [8, 8]


def test_the_count_of_skipped_steps_in_a_row_goes_on_over_updates():
    learner = make(num_epochs=3)
    batch = batch_of(learner)
    broken = batch._replace(adv=torch.full_like(batch.adv, NAN))
    for update in (1, 2):
        assert learner.update(broken, 0.0)["optim/skipped"].item() == 3
        assert learner.skipped_in_a_row.item() == 3 * update
    learner.update(batch, 0.0)
    assert learner.skipped_in_a_row.item() == 0


@both
def test_a_policy_that_left_the_finite_is_not_trained_on(family):
    # Every distribution is built without validation, so the gate is all there is.
    learner = make(family)
    batch = batch_of(learner)
    broken = batch._replace(obs=torch.full_like(batch.obs, NAN))
    before = everything(learner)
    learner.update(broken, 0.0)
    assert same_bits(everything(learner), before)
    assert learner.skipped_in_a_row.item() == 4


def test_an_infinite_kl_is_skipped_under_a_penalty_and_harmless_without_lambda():
    # π_old so far away, in its parameters only, that the KL overflows.
    skipped = {}
    for kl_lambda in (0.0, 1.0):
        learner = make(objective=Objective.from_preset("kl_fixed", kl_lambda=kl_lambda))
        batch = batch_of(learner)
        batch.params_old[3, 0] = 1e25
        before = weights(learner)
        skipped[kl_lambda] = learner.update(batch, 0.0)["optim/skipped"].item()
        assert torch.equal(weights(learner), before) is (kl_lambda > 0)
        assert weights(learner).isfinite().all()
    assert skipped == {0.0: 0, 1.0: 4}


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_the_metrics_of_an_update_are_means_over_its_steps():
    learner = make(num_epochs=2, ent_coef=0.1, max_grad_norm=0.1)
    batch = batch_of(learner)
    losses, norms = [], []
    shadow = make(num_epochs=1, ent_coef=0.1, max_grad_norm=0.1)
    for _ in range(2):
        total, *parts, _, _ = shadow.loss(shadow.policy(batch.obs), batch)
        losses.append([*(x.item() for x in parts), total.item()])
        norms.append(gradient(shadow, batch).norm().item())
        shadow.update(batch, 0.0)
    metrics = learner.update(batch, 0.0)
    names = ["loss/policy", "loss/value", "loss/entropy", "loss/total"]
    expected = dict(zip(names, [sum(x) / 2 for x in zip(*losses, strict=True)], strict=True))
    assert {k: metrics[k].item() for k in names} == pytest.approx(expected, rel=1e-5)
    assert norms[0] > 0.1
    assert metrics["optim/grad_norm"].item() == pytest.approx(sum(norms) / 2, rel=1e-5)  # before it is clipped
    assert metrics["optim/steps"].item() == 2


def test_the_profile_of_an_update_is_the_kl_its_minibatches_met_epoch_by_epoch():
    learner = make(num_epochs=3, minibatch_size=5, lr=0.01)
    batch = batch_of(learner, 10)
    met: list[float] = []
    plain = learner.loss
    learner.loss = lambda output, rows: met.append((losses := plain(output, rows)).kl.item()) or losses
    told = learner.update(batch, 0.0)
    assert met[0] < 1e-12  # before the first step
    for i in range(3):
        assert told[f"kl/epoch_{i + 1}"].item() == pytest.approx((met[2 * i] + met[2 * i + 1]) / 2, rel=1e-5)
    assert told["kl/epoch_3"] > told["kl/epoch_1"]


def test_of_many_epochs_ten_are_told_and_of_those_that_were_not_run_none():
    learner = make(num_epochs=80, minibatch_size=10)
    told = learner.update(batch_of(learner, 10), 0.0)
    shown = [int(tag.removeprefix("kl/epoch_")) for tag in told if tag.startswith("kl/epoch_")]
    assert len(shown) == 10
    assert (shown[0], shown[-1]) == (1, 80)
    stopped = make(num_epochs=4, minibatch_size=10, lr=0.1, kl_stop=KLStop("after_epoch", threshold=1e-6))
    told = stopped.update(batch_of(stopped, 10), 0.0)
    assert [tag for tag in told if tag.startswith("kl/epoch_")] == ["kl/epoch_1"]


def test_the_metrics_of_one_update_do_not_change_with_the_next():
    learner = make(lr_schedule="linear")
    batch = batch_of(learner)
    first = learner.update(batch, 0.0)
    copies = {k: x.clone() for k, x in first.items()}
    learner.update(batch, 0.5)
    assert same_bits(first, copies)


# --- early stop -------------------------------------------------------------------------------------------------------


def with_stop(objective="kl_adaptive", num_epochs=8, **stop) -> Learner:
    """One minibatch per epoch, so that the KL before its step is 0 in the first epoch and not after."""
    return make(
        objective=objective,
        num_epochs=num_epochs,
        clip_grad="apart",
        kl_stop=KLStop(**{"scope": "last_minibatch", **stop}),
    )


def kl_before_step(k: int, objective="kl_adaptive") -> float:
    """The KL before step k of such an update, k = 1, 2, …"""
    learner = make(objective=objective, num_epochs=max(k - 1, 1), clip_grad="apart")
    batch = batch_of(learner)
    if k > 1:
        learner.update(batch, 0.0)
    with torch.no_grad():
        pi_old, pi = (learner.family.build(p) for p in (batch.params_old, learner.policy(batch.obs).params))
    return policy_kl(pi_old, pi).mean().item()


def steps_made(learner: Learner) -> int:
    return int(learner.update(batch_of(learner), 0.0)["optim/steps"].item())


def test_an_update_ends_after_the_epoch_whose_kl_was_too_high():
    kls = [kl_before_step(k) for k in range(1, 6)]
    assert kls == sorted(kls)
    for k in (2, 3, 4):
        between = (kls[k - 1] + kls[k - 2]) / 2  # the KL before step k is the first above
        learner = with_stop(threshold=between)
        metrics = learner.update(batch_of(learner), 0.0)
        assert metrics["optim/steps"].item() == k
        assert metrics["optim/stopped_early"].item() == 1.0


def test_an_update_that_is_stopped_is_as_one_of_fewer_epochs():
    stopped, short = with_stop(threshold=1e-9), with_stop(num_epochs=2, scope="off")
    for learner in (stopped, short):
        learner.update(batch_of(learner), 0.0)
    assert same_bits(everything(stopped), everything(short))


def test_an_update_that_stays_below_runs_to_its_end():
    learner = with_stop(threshold=1e6)
    metrics = learner.update(batch_of(learner), 0.0)
    assert metrics["optim/steps"].item() == 8
    assert metrics["optim/stopped_early"].item() == 0.0


def test_the_last_minibatch_of_an_epoch_decides():
    # Two minibatches per epoch: already in the first epoch the second one's KL is above 0.
    learner = make(minibatch_size=5, num_epochs=8, kl_stop=KLStop(scope="last_minibatch", threshold=1e-9))
    assert steps_made(learner) == 2


def test_the_next_update_begins_unstopped():
    learner = with_stop(threshold=1e-9)
    assert [steps_made(learner), steps_made(learner)] == [2, 2]


def test_off_is_off():
    assert steps_made(with_stop(scope="off")) == 8


def test_without_a_threshold_the_target_of_the_controller_times_the_multiplier_counts():
    kl = kl_before_step(2)

    def objective(kl_target):
        return Objective(ObjectiveConfig("mine", Ratio(), ForwardKL(), Adaptive(kl_target=kl_target)))

    assert steps_made(with_stop(objective(kl * 0.9))) == 2
    assert steps_made(with_stop(objective(kl * 1.1))) > 2
    assert steps_made(with_stop(objective(kl * 0.6), multiplier=1.5)) == 2
    assert steps_made(with_stop(objective(kl * 0.7), multiplier=1.5)) > 2


def test_a_threshold_of_its_own_goes_before_the_target_and_is_multiplied_too():
    kl = kl_before_step(2)
    assert steps_made(with_stop(threshold=0.6 * kl, multiplier=1.5)) == 2
    assert steps_made(with_stop(threshold=0.7 * kl, multiplier=1.5)) > 2


@pytest.mark.parametrize("name", ["clip", "none", "kl_fixed"])
def test_without_threshold_and_target_nothing_stops(name):
    assert steps_made(with_stop(name, multiplier=1e-9)) == 8


def test_where_only_the_actor_stops_the_critic_goes_on():
    learner, short, whole = (
        with_stop(threshold=1e-9, stops="actor"),
        with_stop(num_epochs=2, scope="off"),
        with_stop(scope="off"),
    )
    batch = batch_of(learner)
    metrics = learner.update(batch, 0.0)
    short.update(batch, 0.0)
    whole.update(batch, 0.0)
    assert metrics["optim/stopped_early"].item() == 1.0
    assert metrics["optim/steps"].item() == 8
    # The actor stands where two epochs left it, the critic where all eight did, and so do their moments.
    assert torch.equal(actor_and_critic(learner)[0], actor_and_critic(short)[0])
    assert torch.equal(actor_and_critic(learner)[1], actor_and_critic(whole)[1])
    assert not torch.equal(actor_and_critic(learner)[1], actor_and_critic(short)[1])
    state, short_state, whole_state = (x.state_dict() for x in (learner, short, whole))
    assert state["adam_steps"].tolist() == [2, 8]
    for moment, name in itertools.product(("exp_avg", "exp_avg_sq"), learner.parameters.names):
        reference = short_state if name.startswith("actor.") else whole_state
        assert torch.equal(state[moment][name], reference[moment][name])


def test_an_actor_that_stands_still_takes_nothing_of_the_critics_share_of_the_norm():
    # Two steps of both, clipped together; then the critic is alone, and the norm is its own.
    stop = KLStop(scope="last_minibatch", threshold=1e-9, stops="actor")
    learner = make(objective="kl_adaptive", num_epochs=8, max_grad_norm=0.3, kl_stop=stop)
    batch = batch_of(learner)
    plain = PlainPPO(make(objective="kl_adaptive", num_epochs=2, max_grad_norm=0.3), kl_lambda=1.0)
    plain.update(batch)
    critic = plain.policy.critic
    for _ in range(6):
        plain.optimizer.zero_grad()  # Adam leaves what has no gradient where it is
        (0.5 * ((critic(critic.body(batch.obs, (), True)[0]) - batch.ret) ** 2).mean()).backward()
        plain.norms.append(nn.utils.clip_grad_norm_(critic.parameters(), 0.3).item())
        plain.optimizer.step()
    assert min(plain.norms) > 0.3
    learner.update(batch, 0.0)
    torch.testing.assert_close(learner.state_dict()["policy"], plain.weights(), rtol=0, atol=1e-6)


# --- state ------------------------------------------------------------------------------------------------------------


@both
def test_a_restored_learner_goes_on_bit_for_bit(family):
    first = make(family, minibatch_size=4)
    batch = batch_of(first)
    first.update(batch, 0.0)
    broken = batch._replace(adv=torch.full_like(batch.adv, NAN))
    first.update(broken, 0.0)
    saved = copy.deepcopy(first.state_dict())

    second = make(family, minibatch_size=4)
    second.load_state_dict(saved)
    assert second.skipped_in_a_row.item() == 12
    for learner in (first, second):
        learner.update(batch, 0.0)
    assert same_bits(everything(first), everything(second))
    assert torch.equal(first.generator.get_state(), second.generator.get_state())


def test_what_was_saved_does_not_change_with_later_steps():
    learner = make()
    batch, saved = batch_of(learner), learner.state_dict()
    copies = copy.deepcopy(saved)
    learner.update(batch, 0.0)
    for part in ("policy", "exp_avg", "exp_avg_sq"):
        assert same_bits(saved[part], copies[part])
    assert torch.equal(saved["adam_steps"], copies["adam_steps"])


def test_weights_and_moments_are_saved_under_the_modules_own_names():
    learner = make()
    state, names = learner.state_dict(), {name for name, _ in learner.policy.named_parameters()}
    assert set(state["policy"]) == set(state["exp_avg"]) == set(state["exp_avg_sq"]) == names
    for name, x in learner.policy.named_parameters():
        assert torch.equal(state["policy"][name], x)


@pytest.mark.parametrize("part", ["policy", "exp_avg", "exp_avg_sq", "adam_steps", "skipped_in_a_row", "generator"])
@pytest.mark.parametrize("fault", ["missing", "misshapen"])
def test_a_state_that_does_not_fit_is_refused_whole(part, fault):
    other = make(objective="clip")
    other.update(batch_of(other), 0.0)
    saved = other.state_dict()
    if fault == "missing":
        del saved[part]
    elif isinstance(saved[part], dict):
        saved[part]["critic.1.bias"] = torch.zeros(3)
    else:
        saved[part] = torch.zeros(3, dtype=torch.uint8)
    learner = make()
    before, stream = everything(learner), learner.generator.get_state()
    with pytest.raises((CheckpointError, KeyError, RuntimeError, TypeError)):
        learner.load_state_dict(saved)
    assert same_bits(everything(learner), before)
    assert torch.equal(learner.generator.get_state(), stream)
    assert learner.skipped_in_a_row.item() == 0


# --- the actor stands still ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_grad", ["joint", "apart"])
def test_a_stopped_actor_has_no_part_in_the_step_of_the_critic(clip_grad):
    # Its gradient is largest just when the stop fires; in a joint norm it would shrink the critic's step to nothing.
    stop = KLStop("last_minibatch", threshold=1e-3, stops="actor")
    calm, wild = (make(kl_stop=stop, clip_grad=clip_grad, objective="none") for _ in range(2))
    batch = batch_of(calm)
    before = actor_and_critic(calm)
    for learner, advantage in ((calm, 1.0), (wild, 1e6)):
        learner.early_stop.stopped.fill_(True)
        learner.step(batch._replace(adv=batch.adv * advantage))
    assert torch.equal(actor_and_critic(calm)[0], before[0])
    assert not torch.equal(actor_and_critic(calm)[1], before[1])
    assert torch.equal(weights(calm), weights(wild))


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["clip", "kl_adaptive", "tr_ppo"])
def test_masked_samples_are_learned_from_as_if_the_others_were_not_there(objective):
    # Four actions of which the last is ruled out everywhere, and a policy of three with the same weights.
    four, three = make(CategoricalFamily(4), objective), make(CategoricalFamily(3), objective)
    weights = four.state_dict()["policy"]
    with torch.no_grad():
        for name, x in three.parameters.split(three.parameters.flat).items():
            x.copy_(weights[name][:3] if name.startswith("actor.last") else weights[name])
    mask = torch.tensor([True, True, True, False]).expand(40, 4)
    batch = batch_of(four, 40)
    generator = seeded(4)
    action = four.family.sample(batch.params_old, generator, mask)
    old = batch.params_old + 0.3 * torch.randn(40, 4, generator=generator)
    logp_old = four.family.build(old, mask).log_prob(action)
    batch = batch._replace(action=action, params_old=old, logp_old=logp_old, action_mask=mask)
    without = batch._replace(params_old=old[:, :3], action_mask=None)
    losses = (it.loss(it.policy(b.obs), b)._asdict() for it, b in ((four, batch), (three, without)))
    equal(*losses)
    before = (kl_before(it.policy, it.family, b) for it, b in ((four, batch), (three, without)))
    torch.testing.assert_close(*before)
    equal(*(measure(it.policy, it.family, it.objective, b) for it, b in ((four, batch), (three, without))))
    equal(*(it.update(b, 0.0) for it, b in ((four, batch), (three, without))))


def equal(one, other):
    assert one.keys() == other.keys()
    for name, x in one.items():
        torch.testing.assert_close(x, other[name], rtol=1e-4, atol=1e-6, msg=name)
