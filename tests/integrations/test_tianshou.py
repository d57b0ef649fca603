"""scripts/examples/tianshou_cartpole.py against Tianshou: with its objective it is its PPO, with ours λ and KL hold."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import tianshou as ts
import torch
from script_modules import load_script
from torch.distributions import Categorical, kl_divergence
from torch.utils.tensorboard import SummaryWriter

from ppo_kl.objectives import Objective

example = load_script("examples/tianshou_cartpole")

ROLLOUTS, STEPS, ENVS = 3, 128, 2
TUNED = {"gamma": 0.98, "max_grad_norm": 0.5, "max_batchsize": 50}


def built(cls, **settings):
    torch.manual_seed(0)
    net, actor = (ts.utils.net.common.Net(state_shape=4, action_shape=n, hidden_sizes=(8,)) for n in (0, 2))
    critic = ts.utils.net.discrete.DiscreteCritic(preprocess_net=net)
    policy = ts.algorithm.modelfree.reinforce.DiscreteActorPolicy(actor=actor, action_space=gym.spaces.Discrete(2))
    adam = ts.algorithm.optim.AdamOptimizerFactory(lr=1e-2)
    return cls(policy=policy, critic=critic, optim=adam, **TUNED | settings)


def trained(algorithm, **params):
    torch.manual_seed(1)
    np.random.seed(1)
    envs = ts.env.DummyVectorEnv([lambda: gym.make("CartPole-v1") for _ in range(ENVS)])
    envs.seed(1)
    algorithm.run_training(
        ts.trainer.OnPolicyTrainerParams(
            training_collector=ts.data.Collector(algorithm, envs, ts.data.VectorReplayBuffer(STEPS, ENVS)),
            max_epochs=1,
            epoch_num_steps=ROLLOUTS * STEPS,
            collection_step_num_env_steps=STEPS,
            update_step_num_repetitions=4,
            batch_size=48,
            verbose=False,
            show_progress=False,
            **params,
        )
    )
    return algorithm


def parameters(algorithm):
    return torch.cat([p.detach().flatten() for p in (*algorithm.policy.parameters(), *algorithm.critic.parameters())])


@pytest.fixture
def every_update(monkeypatch):
    """Of each update: λ before and after every call of the objective, and the policy's old and new logits."""
    seen = []
    update, forward = example.PPOKL._update_with_batch, Objective.forward

    def watched_update(self, batch, *args, **kwargs):
        def logits():
            with torch.no_grad():
                return self.policy.actor(torch.as_tensor(batch.obs))[0]

        told = {"old": logits(), "before": self.objective.kl_lambda.item(), "during": []}
        seen.append(told)
        stats = update(self, batch, *args, **kwargs)
        told |= {"new": logits(), "after": self.objective.kl_lambda.item(), "stats": stats}
        return stats

    def watched_forward(self, **tensors):
        out = forward(self, **tensors)
        seen[-1]["during"].append(self.kl_lambda.item())
        return out

    monkeypatch.setattr(example.PPOKL, "_update_with_batch", watched_update)
    monkeypatch.setattr(Objective, "forward", watched_forward)
    return seen


def kl_adaptive(**settings):
    return built(example.PPOKL, objective=Objective.from_preset("kl_adaptive", **settings))


def exact_kl(told):
    return kl_divergence(Categorical(logits=told["old"]), Categorical(logits=told["new"])).mean().item()


def test_with_clip_it_is_tianshous_ppo_bit_for_bit():
    theirs = parameters(trained(built(ts.algorithm.PPO, eps_clip=0.2)))
    ours = parameters(trained(built(example.PPOKL, objective=Objective.from_preset("clip", clip_eps=0.2))))
    assert torch.equal(ours, theirs)


def test_another_clip_eps_is_another_result():
    theirs = parameters(trained(built(ts.algorithm.PPO, eps_clip=0.2)))
    ours = parameters(trained(built(example.PPOKL, objective=Objective.from_preset("clip", clip_eps=0.1))))
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("setting", [{"dual_clip": 2.0}, {"value_clip": True}, {"recompute_advantage": True}])
def test_what_the_copy_leaves_out_is_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        built(example.PPOKL, objective=Objective.from_preset("clip"), **setting)


def test_lambda_moves_once_per_rollout_by_the_rule_on_the_exact_kl(every_update):
    trained(kl_adaptive(kl_target=0.003))
    assert len(every_update) == ROLLOUTS
    factors = []
    for told in every_update:
        assert len(told["during"]) == 4 * 2  # 128 rows by 48: 48 and 80, as Tianshou merges the last
        assert set(told["during"]) == {told["before"]}
        kl = exact_kl(told)
        assert told["stats"].kl == pytest.approx(kl, rel=1e-4)
        factors.append(2 if kl > 1.5 * 0.003 else 0.5 if kl < 0.003 / 1.5 else 1)
        assert told["after"] == pytest.approx(factors[-1] * told["before"])
    assert set(factors) != {1}


def test_the_first_call_of_an_update_sees_a_kl_of_zero(monkeypatch):
    first = []
    update = example.PPOKL._update_with_batch
    forward = Objective.forward
    monkeypatch.setattr(Objective, "forward", lambda self, **x: (first.append(x["kl"].detach()), forward(self, **x))[1])
    starts = []
    monkeypatch.setattr(
        example.PPOKL, "_update_with_batch", lambda self, *a, **k: (starts.append(len(first)), update(self, *a, **k))[1]
    )
    trained(kl_adaptive())
    for start in starts:
        torch.testing.assert_close(first[start], torch.zeros_like(first[start]), atol=1e-7, rtol=0)
        assert first[start + 1].max() > 0


def test_the_state_of_the_objective_is_in_tianshous_state_dict(tmp_path):
    algorithm = trained(built(example.PPOKL, objective=Objective.from_preset("kl_pi", kl_target=0.003)))
    torch.save(algorithm.state_dict(), tmp_path / "algorithm.pt")
    fresh = built(example.PPOKL, objective=Objective.from_preset("kl_pi", kl_target=0.003))
    before = copy.deepcopy(fresh.objective.state_dict())
    fresh.load_state_dict(torch.load(tmp_path / "algorithm.pt"))
    for name in ("kl_lambda", "memory"):
        assert torch.equal(fresh.objective.state_dict()[name], algorithm.objective.state_dict()[name])
        assert not torch.equal(fresh.objective.state_dict()[name], before[name])


def test_lambda_and_the_exact_kl_are_in_tianshous_log(tmp_path, every_update):
    logger = ts.utils.TensorboardLogger(SummaryWriter(tmp_path), update_interval=1)
    trained(kl_adaptive(kl_target=0.003), logger=logger)
    log = logger.restore_logged_data(str(tmp_path))["update"]
    assert log["kl"] == pytest.approx([exact_kl(told) for told in every_update], rel=1e-4)
    assert log["kl_lambda"] == pytest.approx([told["before"] for told in every_update])
    assert len(log["actor_loss"]["mean"]) == ROLLOUTS


def test_the_example_prints_kl_lambda_and_return_of_every_rollout(tmp_path, capsys):
    example.main(steps=2049, log_dir=str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("KL ") and "  λ " in line and "  return " in line for line in lines)
