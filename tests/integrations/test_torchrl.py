"""ObjectiveLoss is TorchRL's loss module with another policy loss: its own two are two of its objectives."""

import sys
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchrl deprecates classes of its own while it is imported
    from tensordict import TensorDict
    from tensordict.nn import (
        CompositeDistribution,
        NormalParamExtractor,
        ProbabilisticTensorDictSequential,
        TensorDictModule,
        TensorDictSequential,
        set_composite_lp_aggregate,
    )
    from torchrl.checkpoint import Checkpoint
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
    from torchrl.envs import GymEnv
    from torchrl.modules import (
        IndependentNormal,
        LSTMModule,
        MaskedCategorical,
        OneHotCategorical,
        ProbabilisticActor,
        TanhNormal,
        TruncatedNormal,
        ValueOperator,
        set_recurrent_mode,
    )
    from torchrl.objectives import ClipPPOLoss, KLPENPPOLoss, ValueEstimators
    from torchrl.objectives.value import GAE
    from torchrl.record import CSVLogger
    from torchrl.trainers.algorithms import PPOTrainer

from script_modules import load_script

import ppo_kl.integrations.torchrl as adapter
from ppo_kl.errors import ConfigError
from ppo_kl.integrations.torchrl import METRICS, ObjectiveLoss
from ppo_kl.objectives import Objective, ObjectiveConfig
from ppo_kl.objectives.controllers import adaptive

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchrl"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensordict"),
    pytest.mark.filterwarnings("ignore:.*closed-form entropy.*"),
    pytest.mark.filterwarnings("ignore:The '.*' hook stage will be replaced:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*experimental/prototype feature.*:UserWarning"),
]

LOC_SCALE, LOGITS = ["loc", "scale"], ["logits"]
DISTRIBUTIONS = {
    "normal": (IndependentNormal, LOC_SCALE),
    "tanh": (TanhNormal, LOC_SCALE),
    "categorical": (Categorical, LOGITS),
    "one_hot": (OneHotCategorical, LOGITS),
}
EXACT_THERE = ["normal", "categorical", "one_hot"]
"""Where KLPENPPOLoss has the exact KL too; of a squashed Gaussian it draws samples."""


def actor_of(dist_class, keys):
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    if keys == LOC_SCALE:
        net.append(NormalParamExtractor())
    module = TensorDictModule(net, in_keys=["observation"], out_keys=keys)
    return ProbabilisticActor(module, in_keys=keys, distribution_class=dist_class, return_log_prob=True)


def critic_of(key="state_value"):
    return ValueOperator(nn.Linear(3, 1), in_keys=["observation"], out_keys=[key])


def collected(actor, *batch, moved=0.3):
    """What a collector and GAE write, and an actor that has since moved on."""
    rollout = TensorDict({"observation": torch.randn(*batch, 3)}, batch)
    with torch.no_grad():
        rollout = actor(rollout)
        for parameter in actor.parameters():
            parameter.add_(moved * torch.randn_like(parameter))
    rollout["advantage"], rollout["value_target"] = torch.randn(*batch, 1), torch.randn(*batch, 1)
    rollout["state_value"] = torch.randn(*batch, 1)
    return rollout


@pytest.fixture(autouse=True)
def _distributions_validate_their_arguments():
    # As torchrl itself leaves it when it is imported: its TanhNormal does not pass torch's validation.
    Distribution.set_default_validate_args(False)
    yield
    Distribution.set_default_validate_args(__debug__)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=DISTRIBUTIONS)
def actor(request):
    return actor_of(*DISTRIBUTIONS[request.param])


def normal_actor():
    return actor_of(IndependentNormal, LOC_SCALE)


def assert_same_losses_and_gradients(host, ours, rollout, modules, logged=("entropy", "kl_approx")):
    outs = []
    for loss in (host, ours):
        torch.manual_seed(1)  # an entropy without a formula is sampled
        out = loss(rollout.clone())
        total = out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]
        parameters = [p for module in modules for p in module.parameters()]
        outs.append((out, torch.autograd.grad(total, parameters)))
    (theirs, their_grads), (own, own_grads) = outs
    for key in ("loss_objective", "loss_critic", "loss_entropy", *logged):
        torch.testing.assert_close(own[key], theirs[key], rtol=1e-5, atol=1e-6)
    assert any(grad.abs().max() > 1e-3 for grad in own_grads)
    for theirs_, own_ in zip(their_grads, own_grads, strict=True):
        torch.testing.assert_close(own_, theirs_, rtol=1e-4, atol=1e-6)
    return theirs, own


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalize_advantage": True},
        {"entropy_coeff": 0.1, "critic_coeff": 0.5, "loss_critic_type": "l2"},
        {"clip_value": 0.1},
        {"separate_losses": True},
        {"functional": False},
    ],
    ids=str,
)
def test_clip_is_the_hosts_clipped_loss(actor, settings):
    critic, rollout = critic_of(), collected(actor, 64)
    host = ClipPPOLoss(actor, critic, clip_epsilon=0.2, **settings)
    ours = ObjectiveLoss(actor, critic, objective="clip", **settings)
    theirs, own = assert_same_losses_and_gradients(host, ours, rollout, (actor, critic))
    for key in ("clip_fraction", "ESS", "mean_ratio", "explained_variance"):
        torch.testing.assert_close(own[key], theirs[key])
    assert own["clip_fraction"] > 0.1


def test_the_equality_can_fail():
    actor, critic = normal_actor(), critic_of()
    rollout = collected(actor, 64)
    host = ClipPPOLoss(actor, critic, clip_epsilon=0.1)
    with pytest.raises(AssertionError):
        assert_same_losses_and_gradients(host, ObjectiveLoss(actor, critic, objective="clip"), rollout, (actor, critic))


@pytest.mark.parametrize("name", EXACT_THERE)
def test_a_fixed_penalty_is_the_hosts_with_beta_held(name):
    actor, critic = actor_of(*DISTRIBUTIONS[name]), critic_of()
    rollout = collected(actor, 64)
    host = KLPENPPOLoss(actor, critic, beta=3.0, increment=1.0, decrement=1.0)
    ours = ObjectiveLoss(actor, critic, objective=Objective.from_preset("kl_fixed", kl_lambda=3.0))
    theirs, own = assert_same_losses_and_gradients(host, ours, rollout, (actor, critic))
    torch.testing.assert_close(own["kl"], theirs["kl"].mean())
    assert own["kl"] > 0.01
    torch.testing.assert_close(own["penalty"], 3 * own["kl"])


def test_a_batch_of_sequences_is_a_batch():
    actor, critic = normal_actor(), critic_of()
    rollout = collected(actor, 4, 16)
    for host, objective in (
        (ClipPPOLoss(actor, critic), "clip"),
        (KLPENPPOLoss(actor, critic, beta=1.0, increment=1.0, decrement=1.0), "kl_fixed"),
    ):
        ours = ObjectiveLoss(actor, critic, objective=objective)
        assert_same_losses_and_gradients(host, ours, rollout, (actor, critic))
    flat = ObjectiveLoss(actor, critic).adapt_(rollout.reshape(-1))
    assert ObjectiveLoss(actor, critic).adapt_(rollout) == pytest.approx(flat, rel=1e-5)


def test_samples_that_a_mask_excludes_count_nowhere():
    actor, critic = normal_actor(), critic_of()
    rollout = collected(actor, 32)
    valid = torch.arange(32) < 20
    masked = rollout.clone().set("shifted_valid", valid)
    host, ours = ClipPPOLoss(actor, critic), ObjectiveLoss(actor, critic, objective="clip")
    # The host's own kl_approx and entropy count every sample all the same.
    assert_same_losses_and_gradients(host, ours, masked, (actor, critic), logged=())
    kept = ours(rollout[:20])
    for key in ("loss_objective", *METRICS):
        torch.testing.assert_close(ours(masked)[key], kept[key])
    assert ours.adapt_(masked)["kl/forward"] == pytest.approx(ours.adapt_(rollout[:20])["kl/forward"])


def test_several_heads_are_one_policy_whose_kl_is_the_sum():
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6))

    def heads(x):
        loc, scale, logits = x.split([2, 2, 2], -1)
        return loc, nn.functional.softplus(scale), logits

    keys = [("params", "move", "loc"), ("params", "move", "scale"), ("params", "fire", "logits")]
    module = TensorDictModule(lambda x: heads(net(x)), in_keys=["observation"], out_keys=keys)
    module.net = net
    with set_composite_lp_aggregate(False):
        actor = ProbabilisticActor(
            module,
            in_keys=["params"],
            distribution_class=CompositeDistribution,
            distribution_kwargs={"distribution_map": {"move": IndependentNormal, "fire": Categorical}},
            return_log_prob=True,
        )
        critic, rollout = critic_of(), collected(actor, 32)
        host, ours = ClipPPOLoss(actor, critic), ObjectiveLoss(actor, critic, objective="clip")
        assert_same_losses_and_gradients(host, ours, rollout, (actor, critic))
        old, new = rollout["params"], actor.get_dist_params(rollout.clone())["params"]
        expected = (
            sum(
                kl_divergence(Independent(Normal(*(td["move", k] for k in LOC_SCALE)), 1), other).mean()
                for td, other in ((old, Independent(Normal(*(new["move", k] for k in LOC_SCALE)), 1)),)
            )
            + kl_divergence(Categorical(logits=old["fire", "logits"]), Categorical(logits=new["fire", "logits"])).mean()
        )
        assert ours(rollout)["kl"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_masked_categorical_has_its_exact_kl():
    mask = torch.tensor([[True, True, False, True]]).repeat(16, 1)
    module = TensorDictModule(nn.Linear(3, 4), in_keys=["observation"], out_keys=["logits"])
    actor = ProbabilisticActor(
        module, in_keys=["logits", "mask"], distribution_class=MaskedCategorical, return_log_prob=True
    )
    rollout = TensorDict({"observation": torch.randn(16, 3), "mask": mask}, [16])
    with torch.no_grad():
        rollout = actor(rollout)
        module.module.bias.add_(torch.tensor([1.0, 0.0, 5.0, 0.0]))
    old, new = (x[..., [0, 1, 3]] for x in (rollout["logits"], module(rollout.clone())["logits"]))
    expected = kl_divergence(Categorical(logits=old), Categorical(logits=new)).mean().item()
    assert ObjectiveLoss(actor, critic_of()).adapt_(rollout)["kl/forward"] == pytest.approx(expected, rel=1e-4)


def test_forward_leaves_lambda_alone_and_adapt_moves_it_by_the_rule_on_the_exact_kl():
    actor, critic = normal_actor(), critic_of()
    rollout = collected(actor, 100)
    loss = ObjectiveLoss(actor, critic)
    before = {name: x.clone() for name, x in loss.state_dict().items()}
    for _ in range(5):
        out = loss(rollout)
    assert all(torch.equal(before[name], x) for name, x in loss.state_dict().items())
    assert out["kl_lambda"] == 1.0
    # The host's own adapts in every forward pass, and to the minibatch.
    host = KLPENPPOLoss(actor, critic)
    for _ in range(5):
        host(rollout)
    assert host.beta == 2.0**5

    new = actor.get_dist_params(rollout.clone())
    pair = [Independent(Normal(td["loc"].double(), td["scale"].double()), 1) for td in (rollout, new)]
    exact = kl_divergence(*pair).mean().item()
    logged = loss.adapt_(rollout)
    assert logged["kl/controlled"] == pytest.approx(exact, rel=1e-5)
    assert logged["penalty/lambda"] == 1.0
    expected = adaptive(torch.tensor(1.0), torch.tensor(exact), torch.tensor(0.01), band=1.5, factor=2.0)
    assert loss.objective.kl_lambda == expected == 2.0
    assert loss(rollout)["kl_lambda"] == 2.0


def test_progress_moves_what_follows_a_schedule():
    actor = normal_actor()
    rollout = collected(actor, 16)
    loss = ObjectiveLoss(actor, critic_of(), objective="mdpo")
    loss.adapt_(rollout, progress=0.5)
    assert loss.objective.kl_lambda == 2.0  # 1 / (1 − p)


def test_a_long_rollout_is_measured_in_parts_that_give_the_same(monkeypatch):
    actor = normal_actor()
    rollout = collected(actor, 30, 4)
    whole = ObjectiveLoss(actor, critic_of()).adapt_(rollout)
    monkeypatch.setattr(adapter, "CHUNK", 17)
    assert ObjectiveLoss(actor, critic_of()).adapt_(rollout) == pytest.approx(whole)


def test_lambda_and_the_controllers_memory_survive_save_and_load(tmp_path):
    actor, critic = normal_actor(), critic_of()
    loss = ObjectiveLoss(actor, critic, objective="kl_pi")
    loss.adapt_(collected(actor, 16))
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    other = ObjectiveLoss(normal_actor(), critic_of(), objective="kl_pi")
    assert other.objective.kl_lambda != loss.objective.kl_lambda
    other.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    for name, buffer in loss.objective.state_dict().items():
        assert torch.equal(other.objective.state_dict()[name], buffer)
    assert other.objective.memory.abs().sum() > 0


@pytest.mark.parametrize("kind", [ValueEstimators.GAE, ValueEstimators.TD0, ValueEstimators.TDLambda], ids=str)
def test_the_value_estimators_of_the_host_make_the_advantage(kind):
    actor, critic = normal_actor(), critic_of()
    rollout = collected(actor, 4, 8).exclude("advantage", "value_target", "state_value")
    rollout["next"] = TensorDict(
        {
            "observation": torch.randn(4, 8, 3),
            "reward": torch.randn(4, 8, 1),
            "done": torch.zeros(4, 8, 1, dtype=torch.bool),
            "terminated": torch.zeros(4, 8, 1, dtype=torch.bool),
        },
        [4, 8],
    )
    host, ours = ClipPPOLoss(actor, critic), ObjectiveLoss(actor, critic, objective="clip")
    for loss in (host, ours):
        loss.make_value_estimator(kind, gamma=0.9)
    assert_same_losses_and_gradients(host, ours, rollout, (actor, critic))


def test_keys_can_be_renamed():
    module = TensorDictModule(nn.Linear(3, 4), in_keys=["observation"], out_keys=["my_logits"])
    actor = ProbabilisticActor(
        module,
        in_keys={"logits": "my_logits"},
        out_keys=["act"],
        distribution_class=Categorical,
        return_log_prob=True,
        log_prob_key="my_logp",
    )
    rollout = collected(actor, 16).rename_key_("advantage", "adv").rename_key_("value_target", "ret")
    losses = []
    for loss in (ClipPPOLoss(actor, critic_of("v")), ObjectiveLoss(actor, critic_of("v"), objective="clip")):
        loss.set_keys(advantage="adv", value_target="ret", value="v")
        losses.append(loss(rollout)["loss_objective"])
    torch.testing.assert_close(*losses)


def test_it_can_be_called_without_a_tensordict():
    actor = normal_actor()
    rollout = collected(actor, 8)
    loss = ObjectiveLoss(actor, critic_of(), objective="clip")
    fields = {key: rollout[key] for key in ("observation", "action", "action_log_prob", "loc", "scale")}
    ended, reward, next_obs = torch.zeros(8, 1, dtype=torch.bool), torch.randn(8, 1), torch.randn(8, 3)
    after = {"next_observation": next_obs, "next_reward": reward, "next_done": ended, "next_terminated": ended}
    out = loss.select_out_keys("loss_objective", "kl")(**fields, **after)
    following = {key.removeprefix("next_"): x for key, x in after.items()}
    expected = ObjectiveLoss(actor, loss.critic_network, objective="clip")(
        TensorDict({**fields, "next": TensorDict(following, [8])}, [8])
    )
    torch.testing.assert_close(out[0], expected["loss_objective"])
    torch.testing.assert_close(out[1], expected["kl"])


def test_what_it_says_it_returns_it_returns():
    actor = normal_actor()
    loss = ObjectiveLoss(actor, critic_of(), clip_value=0.2)
    out = loss(collected(actor, 8))
    assert set(loss.out_keys) <= set(out.keys())
    assert all(out[key].shape == () and not out[key].requires_grad for key in METRICS)
    # A trainer adds up every key that begins with "loss".
    assert sorted(key for key in out.keys() if key.startswith("loss")) == [  # noqa: SIM118
        "loss_critic",
        "loss_entropy",
        "loss_objective",
    ]


def test_no_critic_is_no_critic_loss():
    actor = normal_actor()
    loss = ObjectiveLoss(actor, None, critic_coeff=0.0, entropy_bonus=False)
    out = loss(collected(actor, 8))
    assert [key for key in out.keys() if key.startswith("loss")] == ["loss_objective"]  # noqa: SIM118
    assert set(loss.out_keys) <= set(out.keys())


def test_the_objective_is_a_name_a_config_or_an_objective():
    config, made = ObjectiveConfig(name="mine"), Objective.from_preset("kl_clip")
    actor, critic = normal_actor(), critic_of()
    assert ObjectiveLoss(actor, critic).objective.config.name == "kl_adaptive"
    assert ObjectiveLoss(actor, critic, objective=config).objective.config is config
    assert ObjectiveLoss(actor, critic, objective=made).objective is made
    per_dim = ObjectiveConfig(controller=type(config.controller)(kl_target=None, kl_target_per_dim=0.01))
    assert ObjectiveLoss(actor, critic, objective=per_dim, num_action_dims=2).objective.kl_target == 0.02
    with pytest.raises(ConfigError, match="kl_adaptive"):
        ObjectiveLoss(actor, critic, objective="kl_adaptiv")


@pytest.mark.parametrize("settings", [{"delay_actor": True}, {"max_importance_ratio": 10.0}, {"reduction": "none"}])
def test_settings_that_an_objective_has_no_place_for_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ObjectiveLoss(normal_actor(), critic_of(), **settings)


def test_a_rollout_without_the_old_parameters_is_refused_and_says_what_it_has():
    actor = normal_actor()
    rollout = collected(actor, 8).exclude("scale")
    loss = ObjectiveLoss(actor, critic_of())
    for call in (loss, loss.adapt_):
        with pytest.raises(KeyError, match=r"scale.*not in the batch.*observation"):
            call(rollout)
    with pytest.raises(ValueError, match="asynchronous"):
        loss.adapt_(None)


def test_a_distribution_without_an_exact_kl_is_refused_by_name():
    actor = actor_of(TruncatedNormal, LOC_SCALE)
    rollout = collected(actor, 8)
    with pytest.raises(NotImplementedError, match="TruncatedNormal"):
        ObjectiveLoss(actor, critic_of())(rollout)


def test_several_distributions_in_a_row_are_refused():
    first = actor_of(Categorical, LOGITS)
    second = ProbabilisticActor(
        TensorDictModule(nn.Linear(3, 4), in_keys=["observation"], out_keys=["logits2"]),
        in_keys={"logits": "logits2"},
        out_keys=["action2"],
        distribution_class=Categorical,
        return_log_prob=True,
        log_prob_key="logp2",
    )
    with pytest.raises(TypeError, match=r"2 distributions.*CompositeDistribution"):
        ObjectiveLoss(ProbabilisticTensorDictSequential(*first, *second), critic_of())


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("clip_epsilon", "clip_eps"), ("dtarg", "kl_target"), ("beta", "kl_lambda"), ("entropy_coef", "signature")],
)
def test_a_setting_that_would_be_ignored_is_refused_with_its_place(name, remedy):
    with pytest.raises(TypeError, match=f"{name}=0.3.*{remedy}"):
        ObjectiveLoss(normal_actor(), critic_of(), **{name: 0.3})


def test_a_recurrent_policy_is_measured_over_its_sequences():
    lstm = LSTMModule(input_size=3, hidden_size=4, in_key="observation", out_key="hidden")
    head = TensorDictModule(
        nn.Sequential(nn.Linear(4, 4), NormalParamExtractor()), in_keys=["hidden"], out_keys=LOC_SCALE
    )
    actor = ProbabilisticActor(
        TensorDictSequential(lstm, head), in_keys=LOC_SCALE, distribution_class=IndependentNormal, return_log_prob=True
    )
    rollout = TensorDict({"observation": torch.randn(2, 30, 3), "is_init": torch.zeros(2, 30, 1).bool()}, [2, 30])
    rollout["is_init"][:, 0] = True
    with torch.no_grad(), set_recurrent_mode(True):
        rollout = actor(rollout)
        for parameter in actor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    rollout["advantage"], rollout["value_target"] = torch.randn(2, 30, 1), torch.randn(2, 30, 1)
    loss = ObjectiveLoss(actor, critic_of())
    kl = loss(rollout)["kl"].item()
    assert kl > 0.01
    assert loss.adapt_(rollout)["kl/controlled"] == pytest.approx(kl, rel=1e-5)


def test_the_rollout_is_measured_in_evaluation_mode_and_leaves_the_actor_as_it_was():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4), NormalParamExtractor())
    module = TensorDictModule(net, in_keys=["observation"], out_keys=LOC_SCALE)
    actor = ProbabilisticActor(
        module, in_keys=LOC_SCALE, distribution_class=IndependentNormal, return_log_prob=True
    ).eval()
    rollout = TensorDict({"observation": torch.randn(32, 3)}, [32])
    with torch.no_grad():
        rollout = actor(rollout)
    loss = ObjectiveLoss(actor.train(), critic_of())
    before = {name: x.clone() for name, x in loss.state_dict().items() if "objective" not in name}
    assert loss.adapt_(rollout)["kl/forward"] == pytest.approx(0, abs=1e-6)
    assert loss.actor_network.training
    assert all(torch.equal(loss.state_dict()[name], x) for name, x in before.items())


def test_a_rollout_of_nothing_is_refused():
    actor = normal_actor()
    rollout = collected(actor, 4)
    for empty in (rollout[:0], rollout[0]):
        with pytest.raises(ValueError, match="has no samples"):
            ObjectiveLoss(actor, critic_of()).adapt_(empty)
    masked = rollout.clone().set("shifted_valid", torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="leave no sample"):
        ObjectiveLoss(actor, critic_of()).adapt_(masked)


def test_an_actor_that_is_no_distribution_is_refused():
    module = TensorDictModule(nn.Linear(3, 4), in_keys=["observation"], out_keys=["action"])
    with pytest.raises(TypeError, match="TensorDictModule"):
        ObjectiveLoss(module, critic_of())


def test_an_advantage_of_another_shape_is_refused():
    actor = normal_actor()
    rollout = collected(actor, 8)
    rollout["advantage"] = rollout["advantage"].squeeze(-1)
    with pytest.raises((ValueError, RuntimeError), match=r"shape|size|must match"):
        ObjectiveLoss(actor, critic_of())(rollout)


def cartpole():
    """Actor, critic and collector as in the host's own recipe."""
    env = GymEnv("CartPole-v1", categorical_action_encoding=True)
    env.set_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        spec=env.full_action_spec_unbatched,
        distribution_class=Categorical,
        return_log_prob=True,
    )
    critic = ValueOperator(nn.Linear(4, 1), in_keys=["observation"])
    return (
        actor,
        critic,
        Collector(env, actor, frames_per_batch=64, total_frames=256, auto_register_policy_transforms=False),
    )


def trainer_of(loss, collector, **settings):
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(64), sampler=SamplerWithoutReplacement(), batch_size=32)
    trainer = PPOTrainer(
        collector=collector,
        total_frames=256,
        frame_skip=1,
        optim_steps_per_batch=None,
        num_epochs=2,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-2),
        replay_buffer=buffer,
        gae=GAE(gamma=0.99, lmbda=0.95, value_network=loss.critic_network),
        progress_bar=False,
        log_interval=1,
        **settings,
    )
    trainer.register_op("post_steps_log", loss.adapt_)
    return trainer


def test_in_the_hosts_trainer_lambda_moves_once_per_rollout_and_is_logged_and_saved(tmp_path):
    actor, critic, collector = cartpole()
    loss = ObjectiveLoss(actor, critic)
    adapted = []
    moved, loss.objective.adapt_ = loss.objective.adapt_, lambda kl, **kw: (adapted.append(kl.item()), moved(kl, **kw))
    logger = CSVLogger("run", log_dir=str(tmp_path))
    trainer = trainer_of(loss, collector, logger=logger, checkpoint=Checkpoint(), save_trainer_file=tmp_path / "saved")
    trainer.train()
    assert len(adapted) == 4
    lambda_ = 1.0
    for kl in adapted:
        lambda_ *= 2.0 if kl > 0.015 else 0.5 if kl < 0.01 / 1.5 else 1.0
    assert loss.objective.kl_lambda == lambda_ != 1.0
    logged = {path.stem: path.read_text().splitlines() for path in (tmp_path / "run" / "scalars").rglob("*.csv")}
    assert len(logged["forward"]) >= 3
    assert len(logged["lambda"]) >= 3
    # Another run's trainer that loads this one's state goes on with its λ.
    actor, critic, collector = cartpole()
    other = trainer_of(ObjectiveLoss(actor, critic), collector, checkpoint=Checkpoint())
    other.load_from_file(tmp_path / "saved")
    assert other.loss_module.objective.kl_lambda == lambda_


HOST = """
from torchrl.objectives import ClipPPOLoss
loss_module = ClipPPOLoss(actor, critic, entropy_coeff=0.01)
optim = torch.optim.Adam(loss_module.parameters(), 3e-3)
for rollout in collector:
    advantage_module(rollout)
    for epoch in range(2):
        for batch in rollout.reshape(-1).split(32):
            loss = loss_module(batch)
            total = loss["loss_objective"] + loss["loss_critic"] + loss["loss_entropy"]
            total.backward()
            optim.step()
            optim.zero_grad()
"""


def test_the_hosts_loop_runs_with_two_lines_changed_and_adapts_with_a_third():
    swapped = HOST.replace(
        "from torchrl.objectives import ClipPPOLoss", "from ppo_kl.integrations.torchrl import ObjectiveLoss"
    ).replace("loss_module = ClipPPOLoss(", "loss_module = ObjectiveLoss(")
    assert sum(a != b for a, b in zip(HOST.splitlines(), swapped.splitlines(), strict=True)) == 2
    for text, lambda_moves in ((HOST, None), (swapped, False), (swapped + "    loss_module.adapt_(rollout)\n", True)):
        actor, critic, collector = cartpole()
        names = {"actor": actor, "critic": critic, "collector": collector, "torch": torch}
        names["advantage_module"] = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
        before = [p.clone() for p in actor.parameters()]
        exec(text, names)
        assert not any(torch.equal(x, y) for x, y in zip(before, actor.parameters(), strict=True))
        if lambda_moves is not None:
            assert (names["loss_module"].objective.kl_lambda != 1.0) == lambda_moves


def test_without_the_library_the_error_names_the_extra(said_without):
    said = said_without("tensordict", "torchrl")
    assert 'pip install "ppo-kl[torchrl]"' in said
    assert "tensordict" in said


def test_the_example_prints_kl_and_lambda_of_every_rollout(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["torchrl_pendulum.py", "--steps", "2000", "--log-dir", str(tmp_path)])
    load_script("examples/torchrl_pendulum").main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("return")]
    assert len(lines) == 2
    assert all("KL 0." in line and "λ " in line for line in lines)
    assert list(tmp_path.rglob("events.out.tfevents.*"))
