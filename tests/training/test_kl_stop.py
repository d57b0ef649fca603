"""Early stop on the KL: each preset ends an update exactly where its namesake's own loop would."""

import copy
import dataclasses
from dataclasses import dataclass

import pytest
import torch
from learner_parts import batch_of, make

from ppo_kl.batch import minibatches
from ppo_kl.config import TrainConfig
from ppo_kl.config.presets import PRESETS
from ppo_kl.config.training import KL_STOPS, KLStop, TrainingConfig
from ppo_kl.errors import ConfigError
from ppo_kl.objectives import Objective, policy_kl
from ppo_kl.training.agent import Agent
from ppo_kl.training.kl_stop import EarlyStop, require_threshold

EPOCHS, MINIBATCHES, ROWS = 6, 5, 40


def learner_with(stop: KLStop, objective="clip", **settings):
    """Steps so large that the KL runs away within one update."""
    whole = {"num_epochs": EPOCHS, "minibatch_size": ROWS // MINIBATCHES, "lr": 0.02, "clip_grad": "apart"}
    return make(objective=objective, kl_stop=stop, **{**whole, **settings})


class Namesake:
    """A learner without a stop, for loops that stop by themselves."""

    def __init__(self, **settings):
        self.learner = learner_with(KLStop(), **settings)
        self.batch = batch_of(self.learner, ROWS)
        self.index = torch.arange(ROWS)
        self.steps = 0

    def parts(self):
        """One epoch's minibatches, in the order in which our learner draws them."""
        config = self.learner.config
        index, valid = minibatches(self.index, config.minibatch_size, self.learner.generator)
        return list(zip(index, valid, strict=True))

    def step(self, index, valid):
        self.learner.step(self.batch.rows(index, valid))
        self.steps += 1

    @torch.no_grad()
    def log_ratio(self, index):
        pi = self.learner.family.build(self.learner.policy(self.batch.obs[index]).params)
        return pi.log_prob(self.batch.action[index]) - self.batch.logp_old[index]

    def k3(self, index):
        log_ratio = self.log_ratio(index)
        return ((log_ratio.exp() - 1) - log_ratio).mean().item()

    def k1(self, index):
        return (-self.log_ratio(index)).mean().item()

    @torch.no_grad()
    def exact(self, index):
        family, batch = self.learner.family, self.batch
        old, new = batch.params_old[index], self.learner.policy(batch.obs[index]).params
        return policy_kl(family.build(old), family.build(new)).mean().item()

    def actor(self):
        return self.learner.parameters.flat.detach()[: self.learner.parameters.num_actor].clone()

    def critic(self):
        return self.learner.parameters.flat.detach()[self.learner.parameters.num_actor :].clone()


@dataclass
class Ended:
    """Where a namesake's loop came to rest, and every KL that it looked at."""

    actor: torch.Tensor
    critic: torch.Tensor
    steps: int
    looked_at: list[float]


def stable_baselines3(target):
    # `if target_kl is not None and approx_kl_div > 1.5 * target_kl: continue_training = False; break`, before the step
    it, looked_at, going_on = Namesake(), [], True
    for _ in range(EPOCHS):
        for index, valid in it.parts():
            looked_at.append(it.k3(index))
            if looked_at[-1] > 1.5 * target:
                going_on = False
                break
            it.step(index, valid)
        if not going_on:
            break
    return Ended(it.actor(), it.critic(), it.steps, looked_at)


def cleanrl(target):
    # `if args.target_kl is not None and approx_kl > args.target_kl: break`, after the epoch, of its last minibatch
    it, looked_at = Namesake(), []
    for _ in range(EPOCHS):
        for index, valid in it.parts():
            approx_kl = it.k3(index)
            it.step(index, valid)
        looked_at.append(approx_kl)
        if approx_kl > target:
            break
    return Ended(it.actor(), it.critic(), it.steps, looked_at)


def spinningup(target):
    # train_pi_iters full-batch steps with `if kl > 1.5 * target_kl: break` before each; the value net does all its own
    it, looked_at, actor = Namesake(minibatch_size=ROWS), [], None
    for _ in range(EPOCHS):
        if actor is None:
            looked_at.append(it.k1(it.index))
            if looked_at[-1] > 1.5 * target:
                actor = it.actor()
        for index, valid in it.parts():
            it.step(index, valid)
    return Ended(it.actor() if actor is None else actor, it.critic(), it.steps, looked_at)


def omnisafe(target):
    # `if self._cfgs.algo_cfgs.kl_early_stop and kl > target_kl: break`, after each pass over the data, on all of it
    it, looked_at = Namesake(), []
    for _ in range(EPOCHS):
        for index, valid in it.parts():
            it.step(index, valid)
        looked_at.append(it.exact(it.index))
        if looked_at[-1] > target:
            break
    return Ended(it.actor(), it.critic(), it.steps, looked_at)


NAMESAKES = {"sb3": stable_baselines3, "cleanrl": cleanrl, "spinningup": spinningup, "omnisafe": omnisafe}


@pytest.mark.parametrize("preset", NAMESAKES)
def test_a_preset_stops_exactly_where_its_namesake_does(preset):
    multiplier = KL_STOPS[preset].multiplier
    recorded = NAMESAKES[preset](1e9).looked_at
    # A target just below and just above every value that was met: the loops end at each of these places.
    targets = [value / multiplier * nudge for value in recorded if value > 1e-5 for nudge in (0.999, 1.001)]
    ended_at = set()
    for target in targets:
        expected = NAMESAKES[preset](target)
        size = ROWS if preset == "spinningup" else ROWS // MINIBATCHES
        learner = learner_with(dataclasses.replace(KL_STOPS[preset], threshold=target), minibatch_size=size)
        metrics = learner.update(batch_of(learner, ROWS), 0.0)
        actor, critic = learner.parameters.flat.detach().split(
            [learner.parameters.num_actor, len(learner.parameters.flat) - learner.parameters.num_actor]
        )
        assert torch.equal(actor, expected.actor)
        assert torch.equal(critic, expected.critic)
        assert metrics["optim/steps"].item() == expected.steps
        ended_at.add(len(expected.looked_at))
    assert len(ended_at) >= 3, "a recorded sequence that always ends at the same place proves little"


def test_the_presets_are_what_they_say():
    assert set(KL_STOPS) == {*NAMESAKES, "off"}
    learner = learner_with(KL_STOPS["off"])
    assert learner.update(batch_of(learner, ROWS), 0.0)["optim/steps"].item() == EPOCHS * MINIBATCHES


def test_a_step_that_was_stopped_is_neither_counted_nor_averaged():
    learner = learner_with(KLStop("before_step", "exact", threshold=1e-6))
    batch = batch_of(learner, ROWS)
    loss = learner.loss(learner.policy(batch.obs), batch)  # of the first minibatch below, before any step
    generator = copy.deepcopy(learner.generator.get_state())
    metrics = learner.update(batch, 0.0)
    # The first minibatch's KL is 0 and its step is made; the second's is not.
    assert metrics["optim/steps"].item() == 1
    assert metrics["optim/skipped"].item() == 0
    assert metrics["optim/stopped_early"].item() == 1.0
    again = torch.Generator()
    again.set_state(generator)
    index, valid = minibatches(torch.arange(ROWS), ROWS // MINIBATCHES, again)
    first = learner_with(KLStop())
    rows = batch.rows(index[0], valid[0])
    assert metrics["loss/value"].item() == pytest.approx(first.loss(first.policy(rows.obs), rows).value.item())
    assert loss.total.isfinite()


@pytest.mark.parametrize("scope", ["before_step", "last_minibatch", "before_full_batch", "after_epoch"])
@pytest.mark.parametrize("estimator", ["exact", "k1", "k3"])
@pytest.mark.parametrize("stops", ["all", "actor"])
def test_whatever_stops_the_actor_moves_no_more(scope, estimator, stops):
    stop = KLStop(scope, estimator, threshold=1e-4, stops=stops)
    learner, free = learner_with(stop), learner_with(KLStop())
    batch = batch_of(learner, ROWS)
    metrics = learner.update(batch, 0.0)
    free.update(batch, 0.0)
    n = learner.parameters.num_actor
    assert metrics["optim/stopped_early"].item() == 1.0
    assert not torch.equal(learner.parameters.flat[:n], free.parameters.flat[:n])
    if stops == "actor":
        assert torch.equal(learner.parameters.flat[n:], free.parameters.flat[n:])
        assert metrics["optim/steps"].item() == EPOCHS * MINIBATCHES
    else:
        assert metrics["optim/steps"].item() < EPOCHS * MINIBATCHES


def test_the_threshold_follows_a_target_that_falls():
    objective = Objective.from_preset("kl_adaptive", kl_target=0.02, kl_target_final=0.5)
    stop = EarlyStop(KLStop("before_step", multiplier=2.0), objective, torch.device("cpu"))
    assert float(stop.limit()) == pytest.approx(0.04)
    objective.schedule_(1.0)
    assert float(stop.limit()) == pytest.approx(0.02)


def test_an_undefined_kl_stops_nothing():
    stop = EarlyStop(KLStop("before_step", threshold=0.01), Objective.from_preset("clip"), torch.device("cpu"))
    stop.before_step_(torch.tensor(float("nan")))
    assert not stop.stopped
    stop.before_step_(torch.tensor(float("inf")))
    assert stop.stopped


@pytest.mark.parametrize("name", ["clip", "none", "kl_fixed", "mdpo"])
def test_a_stop_that_has_no_threshold_to_take_is_refused_before_anything_is_made(name):
    with pytest.raises(ConfigError, match=r"kl_stop\.threshold=None.*has none.*give a threshold"):
        require_threshold(KL_STOPS["sb3"], PRESETS[name])
    training = TrainingConfig(kl_stop=KL_STOPS["sb3"])
    with pytest.raises(ConfigError, match="give a threshold"):
        Agent(TrainConfig(objective=PRESETS[name], training=training))
    require_threshold(dataclasses.replace(KL_STOPS["sb3"], threshold=0.01), PRESETS[name])
    require_threshold(KL_STOPS["off"], PRESETS[name])
    require_threshold(KL_STOPS["sb3"], PRESETS["kl_pi"])
