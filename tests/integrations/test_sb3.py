"""PPOKL is Stable-Baselines3's PPO with another loss, and nothing else: with the clipped one it is PPO, bit for bit."""

import csv
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium import spaces
from script_modules import load_script
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution, kl_divergence
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributions import Independent, Normal

from ppo_kl.errors import ConfigError
from ppo_kl.integrations.sb3 import CHUNK, PPOKL
from ppo_kl.objectives import Objective, ObjectiveConfig
from ppo_kl.objectives.controllers import adaptive

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
DICT = spaces.Dict({"a": VECTOR, "b": spaces.Discrete(4)})
BOX, CHOICE = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)
# What differs, for each: observations, actions, policy, settings of PPO.
CASES = {
    "discrete": (VECTOR, CHOICE, "MlpPolicy", {}),
    "box": (VECTOR, BOX, "MlpPolicy", {"ent_coef": 0.01}),
    "multi_discrete": (VECTOR, spaces.MultiDiscrete([2, 3]), "MlpPolicy", {}),
    "multi_binary": (VECTOR, spaces.MultiBinary(3), "MlpPolicy", {}),
    "discrete_obs": (spaces.Discrete(5), CHOICE, "MlpPolicy", {}),
    "dict_obs": (DICT, BOX, "MultiInputPolicy", {}),
    "images": (IMAGE, CHOICE, "CnnPolicy", {"n_steps": 16, "batch_size": 16, "n_epochs": 2}),
    "gsde": (VECTOR, BOX, "MlpPolicy", {"use_sde": True, "sde_sample_freq": 4}),
    "gsde_squashed": (VECTOR, BOX, "MlpPolicy", {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    "clip_range": (VECTOR, BOX, "MlpPolicy", {"clip_range": 0.05}),
    "clip_range_to_0": (VECTOR, CHOICE, "MlpPolicy", {"clip_range": lambda remaining: 0.3 * remaining}),
    "clip_range_below_0": (VECTOR, CHOICE, "MlpPolicy", {"clip_range": lambda remaining: 0.3 * remaining - 0.05}),
    "clip_range_vf": (VECTOR, BOX, "MlpPolicy", {"clip_range_vf": 0.1}),
    "target_kl": (VECTOR, CHOICE, "MlpPolicy", {"target_kl": 1e-3, "learning_rate": 3e-3}),
    "own_adv": (VECTOR, CHOICE, "MlpPolicy", {"normalize_advantage": False}),
    "learning_rate": (VECTOR, CHOICE, "MlpPolicy", {"learning_rate": lambda remaining: 1e-2 * remaining}),
    "dropout": (VECTOR, CHOICE, "MlpPolicy", {"policy_kwargs": {"activation_fn": torch.nn.Dropout}}),
    "shared_net": (VECTOR, BOX, "MlpPolicy", {"policy_kwargs": {"share_features_extractor": False}}),
}
SMALL = {"n_steps": 40, "batch_size": 32, "n_epochs": 3, "seed": 5, "device": "cpu"}
UPDATES = 3
# The host says that 80 rows do not divide into minibatches of 32, which is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size:UserWarning")


@pytest.fixture
def venv(any_spaces) -> Callable[..., DummyVecEnv]:
    def make(obs_space=VECTOR, action_space=CHOICE) -> DummyVecEnv:
        return DummyVecEnv([lambda: any_spaces(obs_space, action_space)] * 2)

    return make


def trained(cls, policy, env, updates=UPDATES, **settings):
    model = cls(policy, env, **{**SMALL, **settings})
    model.set_logger(configure(None, []))
    return model.learn(updates * model.n_steps * env.num_envs)


def kls_of(model):
    """The KLs of the samples of each minibatch that is trained from now on."""
    kls, divergence = [], model.objective.divergence
    model.objective.divergence = lambda pi_old, pi: kls.append(divergence(pi_old, pi)) or kls[-1]
    return kls


class Records(BaseCallback):
    """What the log holds at the end of each rollout: the update before it."""

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        self.seen: list[dict] = []

    def _on_rollout_end(self) -> None:
        self.seen.append(dict(self.logger.name_to_value))


@pytest.mark.parametrize("case", CASES)
def test_with_the_clipped_objective_it_is_the_host_bit_for_bit(case, venv):
    obs_space, action_space, policy, settings = CASES[case]
    host = trained(PPO, policy, venv(obs_space, action_space), **settings)
    ours = trained(PPOKL, policy, venv(obs_space, action_space), objective="clip", **settings)
    theirs, own = host.get_parameters(), ours.get_parameters()
    assert own.keys() - theirs.keys() == {"objective"}
    for name, tensor in theirs["policy"].items():
        assert torch.equal(tensor, own["policy"][name]), name
    for i, moments in theirs["policy.optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(tensor, own["policy.optimizer"]["state"][i][name]), (i, name)
    assert host._n_updates == ours._n_updates
    # The host's own keys are in the log with the host's own numbers, those of the last update.
    for key, number in host.logger.name_to_value.items():
        if key.startswith("train/"):
            assert ours.logger.name_to_value[key] == pytest.approx(number, rel=1e-5, abs=1e-7), key


def test_the_equality_can_fail(venv):
    host = trained(PPO, "MlpPolicy", venv(), clip_range=0.2, learning_rate=3e-3)
    ours = trained(PPOKL, "MlpPolicy", venv(), clip_range=0.1, learning_rate=3e-3, objective="clip")
    pairs = zip(host.policy.parameters(), ours.policy.parameters(), strict=True)
    assert not all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("settings", [{"n_envs": 1}, {"n_envs": 3}], ids=str)
def test_it_is_the_host_with_normalised_observations_and_any_number_of_environments(settings, any_spaces):
    def env():
        return VecNormalize(DummyVecEnv([lambda: any_spaces(VECTOR, BOX)] * settings["n_envs"]))

    host, ours = trained(PPO, "MlpPolicy", env()), trained(PPOKL, "MlpPolicy", env(), objective="clip")
    assert all(torch.equal(x, y) for x, y in zip(host.policy.parameters(), ours.policy.parameters(), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_lambda_moves_once_per_rollout_on_the_exact_kl_after_the_update(case, venv):
    obs_space, action_space, policy, settings = CASES[case]
    settings = {key: value for key, value in settings.items() if key != "clip_range"}
    model = PPOKL(policy, venv(obs_space, action_space), **{**SMALL, **settings})
    model.set_logger(configure(None, []))
    lambdas = []

    def measured():
        """Mean KL between the host's own distributions at θ_old and at θ, in every row of the rollout, in float64."""
        rows = np.arange(model.rollout_buffer.buffer_size * model.rollout_buffer.n_envs)
        obs = model.rollout_buffer._get_samples(rows).observations
        pair = []
        for state in (collected[0], model.policy.state_dict()):
            policy = type(model.policy)(**model.policy._get_constructor_parameters())
            policy.load_state_dict(state)
            policy.set_training_mode(False)
            pair.append(in_float64(policy.get_distribution(obs)))
        return kl_divergence(*pair).reshape(len(rows), -1).sum(-1).mean().item()

    train, collected = model.train, []

    def spied() -> None:
        collected[:] = [{k: v.clone() for k, v in model.policy.state_dict().items()}]
        start = model.objective.kl_lambda.item()
        train()
        kl = measured()
        controlled = model.logger.name_to_value["kl/controlled"]
        assert controlled == pytest.approx(kl, rel=2e-3, abs=1e-7)
        expected = adaptive(
            torch.tensor(start), torch.tensor(controlled), torch.tensor(0.01), band=1.5, factor=2.0
        ).clamp(1e-4, 1e4)
        assert model.objective.kl_lambda.item() == pytest.approx(expected.item())
        assert model.logger.name_to_value["penalty/lambda"] == pytest.approx(start)
        lambdas.append(start)

    model.train = spied
    model.learn(UPDATES * model.n_steps * 2)
    assert len(lambdas) == UPDATES
    assert len(set(lambdas)) > 1


def in_float64(dist):
    """The host's distribution, with torch's own ones in it widened."""

    def widened(part):
        names = ("loc", "scale") if isinstance(part, Normal) else ("logits",)
        return type(part)(**{name: getattr(part, name).detach().double() for name in names})

    parts = dist.distribution
    dist.distribution = [widened(part) for part in parts] if isinstance(parts, list) else widened(parts)
    return dist


@pytest.mark.parametrize("case", ["discrete", "box", "multi_discrete", "multi_binary", "gsde"])
def test_the_behaviour_policy_gives_back_the_log_probabilities_of_the_rollout(case, venv):
    obs_space, action_space, policy, settings = CASES[case]
    model = trained(PPOKL, policy, venv(obs_space, action_space), updates=1, **settings)
    model.train = lambda: None
    model.learn(80, reset_num_timesteps=False)
    buffer = model.rollout_buffer
    next(iter(buffer.get(8)))  # flattens it
    actions = torch.as_tensor(buffer.actions)
    actions = actions.squeeze(-1) if case == "discrete" else actions
    logp = model._build(model._rollout_params()).log_prob(actions)
    torch.testing.assert_close(logp, torch.as_tensor(buffer.log_probs).flatten(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["discrete", "box", "multi_discrete", "multi_binary", "dict_obs", "gsde_squashed"])
def test_each_sample_has_its_own_old_policy(case, venv):
    obs_space, action_space, policy, settings = CASES[case]
    model = PPOKL(policy, venv(obs_space, action_space), **{**SMALL, **settings, "learning_rate": 1e-2})
    kls = kls_of(model)
    model.learn(80)
    # Before the first step π is π_old, sample by sample; after it no more.
    assert kls[0].abs().max() < 1e-6
    assert kls[1].max() > 1e-5


def test_a_rollout_longer_than_one_pass_is_measured_whole(venv):
    model = trained(PPOKL, "MlpPolicy", venv(VECTOR, BOX), updates=1, n_steps=CHUNK, batch_size=128, n_epochs=1)
    assert [len(p) for p in model._rollout_params()] == [2 * CHUNK, 2 * CHUNK]


def test_the_objective_is_a_name_a_config_or_an_objective(venv):
    config = ObjectiveConfig(name="mine")
    made = Objective.from_preset("kl_clip", kl_target=0.02)
    assert PPOKL("MlpPolicy", venv()).objective.config.name == "kl_adaptive"
    assert PPOKL("MlpPolicy", venv(), objective="mdpo").objective.direction == "reverse"
    assert PPOKL("MlpPolicy", venv(), objective=config).objective.config is config
    assert PPOKL("MlpPolicy", venv(), objective=made).objective is made


def test_a_target_per_action_dimension_counts_those_of_the_box(venv):
    objective = ObjectiveConfig(controller=type(ObjectiveConfig().controller)(kl_target=None, kl_target_per_dim=0.01))
    assert PPOKL("MlpPolicy", venv(VECTOR, BOX), objective=objective).objective.kl_target == pytest.approx(0.02)
    with pytest.raises(ConfigError, match="kl_target_per_dim"):
        PPOKL("MlpPolicy", venv(), objective=objective)


@pytest.mark.parametrize("objective", ["kl_adaptive", "kl_pi", "kl_hinge", "mdpo", "truly_ppo", "spo", "dual_clip"])
def test_it_trains_with_any_objective(objective, venv):
    model = trained(PPOKL, "MlpPolicy", venv(VECTOR, BOX), objective=objective)
    assert all(p.isfinite().all() for p in model.policy.parameters())
    assert model.logger.name_to_value["kl/forward"] > 0


def test_what_follows_progress_follows_the_hosts(venv):
    narrowing = Objective.from_preset("clip", clip_eps_schedule="linear")
    model = trained(PPOKL, "MlpPolicy", venv(), updates=4, objective=narrowing)
    # After 4 of 4 rollouts the host's progress is 1.
    assert model.objective.progress.item() == pytest.approx(1.0)
    assert "train/clip_range" not in model.logger.name_to_value


def test_a_last_rollout_beyond_the_end_is_no_error(venv):
    model = PPOKL("MlpPolicy", venv(), objective="mdpo", **SMALL).learn(100)
    assert model.num_timesteps == 160
    assert model.objective.progress.item() == 1.0


def test_lambda_and_the_controllers_memory_survive_save_and_load(venv, tmp_path):
    model = trained(PPOKL, "MlpPolicy", venv(), objective="kl_pi", updates=4)
    model.save(tmp_path / "model")
    loaded = PPOKL.load(tmp_path / "model", env=venv())
    assert loaded.objective.config == model.objective.config
    assert model.objective.kl_lambda.item() != 1.0
    assert model.objective.memory.abs().sum() > 0
    for name, buffer in model.objective.state_dict().items():
        assert torch.equal(loaded.objective.state_dict()[name], buffer), name
    loaded.set_logger(configure(None, []))
    loaded.learn(80, reset_num_timesteps=False)
    assert loaded.logger.name_to_value["penalty/lambda"] == pytest.approx(model.objective.kl_lambda.item())


def test_a_loaded_clip_range_goes_on_and_can_be_changed(venv, tmp_path):
    trained(PPOKL, "MlpPolicy", venv(), objective="clip", clip_range=0.05).save(tmp_path / "model")
    assert PPOKL.load(tmp_path / "model").clip_range(1.0) == 0.05
    changed = PPOKL.load(tmp_path / "model", env=venv(), clip_range=0.1)
    changed.learn(80)
    assert changed.clip_range(1.0) == 0.1


def test_parameters_travel_by_get_and_set(venv):
    model, other = (trained(PPOKL, "MlpPolicy", venv(), updates=n) for n in (4, 1))
    assert other.objective.kl_lambda != model.objective.kl_lambda
    other.set_parameters(model.get_parameters())
    assert other.objective.kl_lambda == model.objective.kl_lambda


def test_a_policy_of_the_hosts_is_taken_over_without_an_objective(venv):
    host = trained(PPO, "MlpPolicy", venv())
    ours = PPOKL("MlpPolicy", venv(), **SMALL)
    ours.set_parameters(host.get_parameters(), exact_match=False)
    assert all(torch.equal(x, y) for x, y in zip(host.policy.parameters(), ours.policy.parameters(), strict=True))


def test_loading_with_another_objective_is_refused_with_the_way_to_do_it(venv, tmp_path):
    trained(PPOKL, "MlpPolicy", venv(), objective="clip").save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"clip.*set_parameters"):
        PPOKL.load(tmp_path / "model", objective="kl_adaptive")


def test_a_target_per_dimension_of_ones_own_count_survives_save_and_load(venv, tmp_path):
    config = ObjectiveConfig(controller=type(ObjectiveConfig().controller)(kl_target=None, kl_target_per_dim=0.01))
    for space in (BOX, CHOICE):
        made = Objective(config, num_action_dims=7)
        PPOKL("MlpPolicy", venv(VECTOR, space), objective=made, **SMALL).save(tmp_path / "model")
        assert PPOKL.load(tmp_path / "model").objective.kl_target == pytest.approx(0.07)


def test_a_file_of_the_host_is_refused_with_the_way_to_go_on(venv, tmp_path):
    trained(PPO, "MlpPolicy", venv(), updates=1).save(tmp_path / "model")
    for settings in ({}, {"objective": "clip"}):
        with pytest.raises(ValueError, match=r"PPO without an objective.*set_parameters"):
            PPOKL.load(tmp_path / "model", **settings)


def test_the_schedules_that_others_put_in_place_of_saved_ones_load(venv, tmp_path):
    trained(PPOKL, "MlpPolicy", venv(), updates=1).save(tmp_path / "model")
    zero = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    loaded = PPOKL.load(tmp_path / "model", env=venv(), custom_objects=zero)
    loaded.learn(80)
    assert loaded.objective.config.name == "kl_adaptive"


class DrawsAhead(RolloutBuffer):
    def get(self, batch_size=None):
        yield from list(super().get(batch_size))


def test_a_buffer_that_draws_ahead_is_paired_with_its_own_rows(venv):
    host = trained(PPO, "MlpPolicy", venv(), rollout_buffer_class=DrawsAhead)
    ours = PPOKL("MlpPolicy", venv(), objective="clip", rollout_buffer_class=DrawsAhead, **SMALL)
    kls = kls_of(ours)
    ours.learn(UPDATES * 80)
    assert kls[0].abs().max() < 1e-6
    assert all(torch.equal(x, y) for x, y in zip(host.policy.parameters(), ours.policy.parameters(), strict=True))


def test_a_buffer_whose_rows_are_not_known_is_refused_by_name(venv):
    class Own(RolloutBuffer):
        def get(self, batch_size=None):
            yield RolloutBuffer._get_samples(self, np.arange(4))

    with pytest.raises(TypeError, match=r"Own\.get.*_get_samples"):
        PPOKL("MlpPolicy", venv(), rollout_buffer_class=Own, **SMALL).learn(80)


def test_a_policy_that_measures_itself_by_another_distribution_is_refused(venv):
    class Fresh(ActorCriticPolicy):
        def _get_action_dist_from_latent(self, latent_pi):
            return type(self.action_dist)(self.action_dist.action_dim).proba_distribution(self.action_net(latent_pi))

    with pytest.raises(NotImplementedError, match="does not set policy"):
        PPOKL(Fresh, venv(), **SMALL).learn(80)


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf")])
def test_a_clip_range_that_is_none_is_refused(wrong, venv):
    with pytest.raises(ValueError, match="clip_range="):
        PPOKL("MlpPolicy", venv(), objective="clip", clip_range=wrong)


@pytest.mark.parametrize("objective", ["kl_adaptive", "spo"])
def test_a_clip_range_that_would_be_ignored_is_refused(objective, venv):
    with pytest.raises(ValueError, match=r"clip_range=0\.1.*" + objective):
        PPOKL("MlpPolicy", venv(), objective=objective, clip_range=0.1)


def test_a_wrong_name_is_refused_with_the_nearest(venv):
    with pytest.raises(ConfigError, match="kl_adaptive"):
        PPOKL("MlpPolicy", venv(), objective="kl_adaptiv")
    with pytest.raises(ConfigError, match="objective=3"):
        PPOKL("MlpPolicy", venv(), objective=3)


def test_a_distribution_without_a_known_kl_is_refused_before_anything_is_collected(venv):
    class Own(ActorCriticPolicy):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            self.action_dist = object.__new__(type("Laplace", (), {}))

    with pytest.raises(NotImplementedError, match="Laplace"):
        PPOKL(Own, venv(VECTOR, BOX))


def test_a_distribution_derived_from_the_hosts_has_the_hosts_kl(venv):
    class Own(DiagGaussianDistribution):
        pass

    class Policy(ActorCriticPolicy):
        def _build(self, lr_schedule):
            self.action_dist = Own(2)
            super()._build(lr_schedule)

    model = trained(PPOKL, Policy, venv(VECTOR, BOX), updates=1)
    dist = model.policy.get_distribution(torch.zeros(1, 3))
    assert isinstance(dist, Own)
    assert isinstance(dist.distribution, Normal)
    assert isinstance(model._build(model._rollout_params()), Independent)


def test_the_early_stop_of_the_host_ends_the_update(venv, capsys):
    model = trained(PPOKL, "MlpPolicy", venv(), updates=1, target_kl=1e-9, verbose=1, learning_rate=1e-2)
    assert model._n_updates == 1
    assert "Early stopping at step 0 due to reaching max kl" in capsys.readouterr().out


def test_lambda_and_kl_are_in_tensorboard_and_csv_but_only_three_on_the_screen(venv, tmp_path, capsys):
    model = PPOKL("MlpPolicy", venv(), **SMALL)
    model.set_logger(configure(str(tmp_path), ["stdout", "csv", "tensorboard"]))
    model.learn(4 * 80)
    model.logger.close()
    shown = capsys.readouterr().out
    assert "lambda" in shown
    assert "forward " in shown
    assert "forward_p95" not in shown
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    # The host writes an update's numbers with the rollout after it: three of the four.
    from_csv = [float(row["penalty/lambda"]) for row in rows if row["penalty/lambda"]]
    assert len(from_csv) == 3
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = {"kl/forward", "kl/forward_p95", "kl/reverse", "kl/controlled", "kl/target_ratio", "penalty/saturated"}
    assert tags <= set(events.Tags()["scalars"])
    assert [e.value for e in events.Scalars("penalty/lambda")] == pytest.approx(from_csv)


def test_callbacks_see_and_stop_the_training(venv):
    class Stop(Records):
        def _on_step(self) -> bool:
            return self.num_timesteps < 200

    callback = Stop()
    model = PPOKL("MlpPolicy", venv(), **SMALL).learn(10_000, callback=callback)
    assert model.num_timesteps == 200
    assert "penalty/lambda" in callback.seen[-1]


def test_the_hosts_example_runs_with_two_lines_changed():
    host = (
        "from stable_baselines3 import PPO\n"
        "from stable_baselines3.common.env_util import make_vec_env\n"
        'vec_env = make_vec_env("CartPole-v1", n_envs=4)\n'
        'model = PPO("MlpPolicy", vec_env, n_steps=64, device="cpu")\n'
        "model.learn(total_timesteps=512)\n"
        "obs = vec_env.reset()\n"
        "action, _states = model.predict(obs)\n"
        "obs, rewards, dones, info = vec_env.step(action)\n"
    )
    ours = host.replace("from stable_baselines3 import PPO\n", "from ppo_kl.integrations.sb3 import PPOKL\n")
    ours = ours.replace("model = PPO(", "model = PPOKL(")
    changed = [a != b for a, b in zip(host.splitlines(), ours.splitlines(), strict=True)]
    assert sum(changed) == 2
    for text in (host, ours):
        names: dict = {}
        exec(text, names)
        assert names["action"].shape == (4,)
    assert names["model"].objective.kl_lambda != 1.0


def test_without_the_library_the_error_names_the_extra(said_without):
    said = said_without("stable_baselines3", "sb3")
    assert 'pip install "ppo-kl[sb3]"' in said
    assert "stable_baselines3" in said


def test_the_example_runs_and_shows_lambda(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sb3_cartpole.py", "--steps", "2048", "--log-dir", str(tmp_path)])
    load_script("examples/sb3_cartpole").main()
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last[0].startswith("return ")
    assert "λ " in last[0]
    assert list(tmp_path.rglob("events.out.tfevents.*"))
