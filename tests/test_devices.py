"""The update stays on its device: no tensor of another one, and no value read per minibatch.

This needs no GPU: on the meta device any tensor that was made on the CPU is an error, and a dispatch mode
sees every value that is read to the host.
"""

import pytest
import torch
from every_family import EVERY_FAMILY, vector
from torch.utils._python_dispatch import TorchDispatchMode

from ppo_kl.batch import Batch
from ppo_kl.config import PolicyConfig, TrainingConfig
from ppo_kl.config.presets import PRESETS
from ppo_kl.config.training import KLStop
from ppo_kl.diagnostics.measure import kl_before, measure
from ppo_kl.objectives import Objective
from ppo_kl.observations import Part
from ppo_kl.policies.actor_critic import ActorCritic
from ppo_kl.policies.box_families import GaussianFamily
from ppo_kl.policies.families import CategoricalFamily
from ppo_kl.policies.normalize import ObservationNormalizer
from ppo_kl.training.learner import Learner

FAMILIES = (CategoricalFamily(3), GaussianFamily((-1.0, -1.0), (1.0, 1.0), (2,)))


def parts(family, objective, device, **training):
    generator = torch.Generator().manual_seed(0)
    policy = ActorCritic((vector(4),), family, PolicyConfig(hidden_sizes=(8,)), generator).to(device)
    learner = Learner(policy, family, Objective(PRESETS[objective]).to(device), TrainingConfig(**training), generator)
    obs = torch.randn(64, 4, generator=generator).to(device)
    with torch.no_grad():
        params, value, _ = policy(obs)
        on_cpu = params if device == "cpu" else torch.zeros(64, family.num_params)
        action = family.sample(on_cpu, generator).to(device)
        logp = family.build(params).log_prob(action)
    valid = (torch.arange(64) % 5 > 0).to(device)
    adv = torch.randn(64, generator=generator).to(device)
    return learner, Batch(obs, action, logp, params, adv, value + adv, value, valid)


TRAINING = (
    {},
    {"clip_grad": "apart", "advantage_norm": "minibatch", "value_clip": 0.2, "ent_coef": 0.01, "lr_schedule": "linear"},
    {"lr_schedule": "kl_adaptive", "kl_stop": KLStop("before_step", "k3", threshold=0.01)},
    {"lr_schedule": "kl_adaptive", "lr_kl_cadence": "epoch", "kl_stop": KLStop("after_epoch", "k1", threshold=0.01)},
    {"max_grad_norm": None, "kl_stop": KLStop("last_minibatch", threshold=0.01, stops="actor")},
)


@pytest.mark.parametrize(
    "training",
    TRAINING,
    ids=["default", "everything", "sb3 and adaptive lr", "after epoch and adaptive lr", "actor stops"],
)
@pytest.mark.parametrize("objective", PRESETS)
@pytest.mark.parametrize("family", FAMILIES, ids=["categorical", "gaussian"])
def test_no_tensor_of_another_device_enters_a_step_or_a_measurement(family, objective, training):
    learner, batch = parts(family, objective, "meta", **training)
    learner.step(batch.rows(torch.arange(16, device="meta"), torch.ones(16, dtype=torch.bool, device="meta")))
    metrics = measure(learner.policy, family, learner.objective, batch)
    metrics |= learner.objective.controller_metrics() | {"before": kl_before(learner.policy, family, batch)}
    learner.objective.adapt_(metrics["kl/controlled"])
    normalizer = ObservationNormalizer((vector(4),), enabled=True).to("meta")
    metrics |= {"obs": normalizer(batch.obs), "λ": learner.objective.kl_lambda}
    assert {x.device.type for x in metrics.values()} == {"meta"}


MIXED = (
    Part(("cam",), "image", (40, 40, 3), "uint8", scale=255.0),
    Part(("room",), "index", (), "int64", (4,), (0,)),
    Part(("pos",), "vector", (2,)),
)
WORLDS = {
    "separate": {},
    "shared impala": {"trunk": "shared", "image_encoder": "impala"},
    "gru": {"memory": "gru", "memory_size": 6},
    "shared lstm": {"memory": "lstm", "memory_size": 6, "trunk": "shared"},
}


def mixed_obs(*batch_shape, device):
    return {
        "cam": torch.zeros(*batch_shape, 40, 40, 3, dtype=torch.uint8, device=device),
        "room": torch.zeros(batch_shape, dtype=torch.int64, device=device),
        "pos": torch.zeros(*batch_shape, 2, device=device),
    }


@pytest.mark.parametrize("settings", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("objective", ["clip", "kl_adaptive"])
def test_every_kind_of_policy_learns_on_the_device_it_is_on_from_masked_samples(settings, objective):
    family, generator = CategoricalFamily(3), torch.Generator().manual_seed(0)
    policy = ActorCritic(MIXED, family, PolicyConfig(hidden_sizes=(8,), **settings), generator).to("meta")
    config = TrainingConfig(kl_stop=KLStop("before_step", "k3", threshold=0.01))
    learner = Learner(policy, family, Objective(PRESETS[objective]).to("meta"), config, generator)
    normalizer = ObservationNormalizer(MIXED, enabled=True).to("meta")
    recurrent = "memory" in settings
    S, L = (4, 3) if recurrent else (12, 1)
    zeros = torch.zeros(12, device="meta")
    batch = Batch(
        obs=normalizer(mixed_obs(*((S, L) if recurrent else (S,)), device="meta")),
        action=zeros.long(),
        logp_old=zeros,
        params_old=torch.zeros(12, 3, device="meta"),
        adv=zeros,
        ret=zeros,
        value_old=zeros,
        valid=zeros == 0,
        action_mask=torch.ones(12, 3, dtype=torch.bool, device="meta"),
        state=policy.initial_state(S),
    )
    units = torch.arange(2, device="meta")
    learner.step(batch.rows(units, torch.ones(2, dtype=torch.bool, device="meta")))
    metrics = measure(policy, family, learner.objective, batch)
    starts = torch.ones(5, dtype=torch.bool, device="meta")
    params, state = policy.act(normalizer(mixed_obs(5, device="meta")), policy.initial_state(5), starts)
    assert {x.device.type for x in (*metrics.values(), params, *state)} == {"meta"}
    assert len(state) == len(batch.state)


class CountHostReads(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def reads_of(what):
    with CountHostReads() as counter:
        what()
    return counter.reads


@pytest.mark.parametrize("family", FAMILIES, ids=["categorical", "gaussian"])
def test_a_gradient_step_and_adapt_read_nothing(family):
    learner, batch = parts(family, "kl_adaptive", "cpu")
    index, valid = torch.arange(16), torch.ones(16, dtype=torch.bool)
    assert reads_of(lambda: learner.step(batch.rows(index, valid))) == 0
    assert reads_of(lambda: learner.objective.adapt_(torch.tensor(0.1))) == 0
    assert reads_of(lambda: measure(learner.policy, family, learner.objective, batch)) == 0
    assert reads_of(lambda: batch.adv.sum().item()) == 1  # the counter counts


def test_the_reads_of_an_update_do_not_grow_with_its_minibatches():
    few, batch = parts(FAMILIES[0], "kl_adaptive", "cpu", minibatch_size=64, num_epochs=1)
    many, _ = parts(FAMILIES[0], "kl_adaptive", "cpu", minibatch_size=4, num_epochs=3)
    assert reads_of(lambda: many.update(batch, 0.0)) == reads_of(lambda: few.update(batch, 0.0)) <= 1


@pytest.mark.parametrize("family", EVERY_FAMILY.values(), ids=EVERY_FAMILY)
def test_no_family_needs_another_device_or_the_host(family):
    learner, batch = parts(family, "kl_adaptive", "meta", ent_coef=0.01)
    learner.step(batch.rows(torch.arange(16, device="meta"), torch.ones(16, dtype=torch.bool, device="meta")))
    assert {x.device.type for x in measure(learner.policy, family, learner.objective, batch).values()} == {"meta"}
    learner, batch = parts(family, "kl_adaptive", "cpu", ent_coef=0.01)
    index, valid = torch.arange(16), torch.ones(16, dtype=torch.bool)
    assert reads_of(lambda: learner.step(batch.rows(index, valid))) == 0
    assert reads_of(lambda: measure(learner.policy, family, learner.objective, batch)) == 0
