"""scripts/examples/skrl_pendulum.py against skrl: with its objective it is its PPO, with ours λ and KL hold."""

import atexit

import gymnasium as gym
import pytest
import torch
from script_modules import load_script
from skrl.agents.torch.ppo import PPO
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.resources.preprocessors.torch import RunningStandardScaler
from skrl.resources.schedulers.torch import KLAdaptiveLR
from skrl.trainers.torch import SequentialTrainer
from skrl.utils.model_instantiators.torch import deterministic_model, gaussian_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributions import Independent, Normal, kl_divergence

from ppo_kl.objectives import Objective

example = load_script("examples/skrl_pendulum")

UPDATES, ROLLOUT, ENVS, EPOCHS, MINI_BATCHES = 3, 16, 4, 4, 3
EVERYTHING = {
    "observation_preprocessor": RunningStandardScaler,
    "observation_preprocessor_kwargs": {"size": 3},
    "value_preprocessor": RunningStandardScaler,
    "value_preprocessor_kwargs": {"size": 1},
    "time_limit_bootstrap": True,
    "entropy_loss_scale": 0.01,
}
NO_LIMITS = {"value_clip": 0.0, "grad_norm_clip": 0.0}


def environment():
    return wrap_env(gym.make_vec("Pendulum-v1", num_envs=ENVS, vectorization_mode="sync", max_episode_steps=7))


def built(cls, directory, *, objective=None, **settings):
    torch.manual_seed(0)
    env = environment()
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": env.device}
    net = [{"name": "net", "input": "OBSERVATIONS", "layers": [8], "activations": "tanh"}]
    models = {"policy": gaussian_model(**spaces, network=net, output="ACTIONS")}
    models["value"] = deterministic_model(**spaces, network=net, output="ONE")
    cfg = {"rollouts": ROLLOUT, "learning_epochs": EPOCHS, "mini_batches": MINI_BATCHES, "learning_rate": 1e-2}
    cfg |= {"experiment": {"directory": str(directory), "write_interval": ROLLOUT, "checkpoint_interval": 0}}
    agent = cls(
        models=models,
        memory=RandomMemory(memory_size=ROLLOUT, num_envs=ENVS, device=env.device),
        cfg=cfg | settings,
        **spaces,
        **({} if objective is None else {"objective": objective}),
    )
    agent.env = env
    return agent


def trained(agent):
    torch.manual_seed(1)
    agent.env._env.reset(seed=1)
    loop = {"timesteps": UPDATES * ROLLOUT, "headless": True, "disable_progressbar": True}
    SequentialTrainer(env=agent.env, agents=agent, cfg=loop | {"close_environment_at_exit": False}).train()
    agent.writer.close()
    return agent


def parameters(agent):
    return torch.cat([p.detach().flatten() for model in agent.models.values() for p in model.parameters()])


def with_clip(clip_eps, directory, **settings):
    objective = Objective.from_preset("clip", clip_eps=clip_eps)
    return built(example.PPOKL, directory, objective=objective, **settings)


def with_kl(directory, preset="kl_adaptive"):
    return built(example.PPOKL, directory, objective=Objective.from_preset(preset))


@pytest.fixture
def every_update(monkeypatch):
    """Of each update: λ before, during and after it, the KLs of its minibatches, and the policies before and after."""
    seen = []
    update, forward = example.PPOKL.update, Objective.forward

    def watched_update(self, **when):
        observations = self.memory.get_tensor_by_name("observations").reshape(-1, 3)

        def policy():
            with torch.no_grad():
                mean, outputs = self.policy.compute({"observations": observations}, "policy")
            return Independent(Normal(mean.clone(), outputs["log_std"].exp().clone()), 1)

        told = {"old": policy(), "before": self.objective.kl_lambda.item(), "during": [], "kls": []}
        seen.append(told)
        update(self, **when)
        told |= {"new": policy(), "after": self.objective.kl_lambda.item()}

    def watched_forward(self, **tensors):
        out = forward(self, **tensors)
        seen[-1]["during"].append(self.kl_lambda.item())
        seen[-1]["kls"].append(tensors["kl"].detach())
        return out

    monkeypatch.setattr(example.PPOKL, "update", watched_update)
    monkeypatch.setattr(Objective, "forward", watched_forward)
    return seen


def exact_kl(told):
    return kl_divergence(told["old"], told["new"]).mean().item()


@pytest.mark.parametrize("settings", [{}, EVERYTHING, NO_LIMITS], ids=["plain", "everything", "no_limits"])
def test_with_clip_it_is_skrls_ppo_bit_for_bit(settings, tmp_path):
    theirs = parameters(trained(built(PPO, tmp_path / "theirs", ratio_clip=0.2, **settings)))
    ours = parameters(trained(with_clip(0.2, tmp_path / "ours", **settings)))
    assert torch.equal(ours, theirs)


def test_another_clip_eps_is_another_result(tmp_path):
    theirs = parameters(trained(built(PPO, tmp_path / "theirs", ratio_clip=0.2)))
    assert not torch.equal(parameters(trained(with_clip(0.1, tmp_path / "ours"))), theirs)


@pytest.mark.parametrize(
    "setting",
    [
        {"mixed_precision": True},
        {"kl_threshold": 0.1},
        {"learning_rate_scheduler": KLAdaptiveLR},
        {"state_preprocessor": RunningStandardScaler, "state_preprocessor_kwargs": {"size": 3}},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_the_copy_leaves_out_is_refused_by_the_name_of_its_setting(setting, tmp_path):
    with pytest.raises(ValueError, match=f"cfg.{next(iter(setting))} "):
        with_clip(0.2, tmp_path, **setting)


def test_lambda_moves_once_per_rollout_by_the_rule_on_the_exact_kl(every_update, tmp_path):
    trained(with_kl(tmp_path))
    assert len(every_update) == UPDATES
    factors = []
    for told in every_update:
        assert len(told["during"]) == EPOCHS * MINI_BATCHES
        assert set(told["during"]) == {told["before"]}
        kl = exact_kl(told)
        factors.append(2 if kl > 1.5 * 0.01 else 0.5 if kl < 0.01 / 1.5 else 1)
        assert told["after"] == pytest.approx(factors[-1] * told["before"])
    assert set(factors) != {1}


def test_the_old_policy_is_the_one_that_collected(every_update, tmp_path):
    trained(with_kl(tmp_path))
    for told in every_update:
        first, second, *_ = told["kls"]
        torch.testing.assert_close(first, torch.zeros_like(first), atol=1e-6, rtol=0)
        assert second.max() > 1e-6


def test_the_state_of_the_objective_is_in_skrls_checkpoint(tmp_path):
    agent = trained(with_kl(tmp_path, "kl_pi"))
    agent.save(str(tmp_path / "agent.pt"))
    fresh = with_kl(tmp_path, "kl_pi")
    before = {name: x.clone() for name, x in fresh.objective.state_dict().items()}
    fresh.load(str(tmp_path / "agent.pt"))
    for name in ("kl_lambda", "memory"):
        assert torch.equal(fresh.objective.state_dict()[name], agent.objective.state_dict()[name])
        assert not torch.equal(fresh.objective.state_dict()[name], before[name])


def test_lambda_and_the_exact_kl_are_in_skrls_log(every_update, tmp_path):
    agent = trained(with_kl(tmp_path))
    log = EventAccumulator(agent.experiment_dir)
    log.Reload()
    logged = {tag: [event.value for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    assert logged["Policy / KL (exact)"] == pytest.approx([exact_kl(told) for told in every_update], rel=1e-4)
    assert logged["Policy / KL penalty coefficient"] == pytest.approx([told["before"] for told in every_update])
    assert len(logged["Loss / Policy loss"]) == len(logged["Loss / Value loss"]) == UPDATES


def test_the_example_prints_kl_lambda_and_return_of_every_rollout(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(atexit, "register", lambda close: close)  # skrl would log there, to a stream that pytest closed
    example.main(steps=2 * 256 * 8, directory=str(tmp_path))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(lines) == 2
    assert all("  KL " in line and "  λ " in line and "  return -" in line for line in lines)
