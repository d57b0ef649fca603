"""Whatever an environment sends, training goes on with the right numbers, or ends with nothing lost."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faulty_envs
import gymnasium as gym
import numpy as np
import pytest
import torch
from faulty_envs import agent_in, fault_config
from gymnasium import spaces
from toy_envs import FAULTY_ENV, MODES, SEED, small_agent

from ppo_kl.cli import main
from ppo_kl.config import EnvConfig
from ppo_kl.envs.make import make_vector_env
from ppo_kl.errors import EnvDataError, EnvWarning
from ppo_kl.observations import each_part, over_parts
from ppo_kl.training.advantages import gae
from ppo_kl.training.agent import Agent
from ppo_kl.training.collector import Collector
from ppo_kl.training.evaluation import evaluate

STEPS = 16
BOTH = pytest.mark.parametrize("vectorization", ["sync", "async"])
NOT_FINITE = ["nan", "inf", "-inf"]


def agent_with(fault: str, **overrides: Any) -> Agent:
    """A small agent in two copies of `Sends`; `at`, `length`, `parts` and `at_reset` are the environment's."""
    own = {f"env__kwargs__{k}": overrides.pop(k) for k in ("at", "length", "parts", "at_reset") if k in overrides}
    return agent_in("Sends", env__kwargs__fault=fault, **own, **overrides)


def learnt(agent: Agent) -> dict[str, Any]:
    """Everything that an update may move."""
    state = agent.state_dict()
    return {name: state[name] for name in ("learner", "objective", "obs_normalizer", "reward_scaler")}


def assert_bit_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_bit_equal(found[key], expected[key])
    else:
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


def all_finite(values: Any) -> bool:
    if isinstance(values, dict):
        return all(all_finite(x) for x in values.values())
    return bool(torch.isfinite(torch.as_tensor(values, dtype=torch.float64)).all())


def collected(fault: str, *, num_steps: int = STEPS, mode: Any = MODES[0], **settings: Any) -> SimpleNamespace:
    """One rollout of a fresh agent in two copies of `Sends`, and what it was collected with."""
    config = fault_config(fault, **settings)
    agent = agent_in("Sends", env__kwargs__parts=settings.get("parts", False))
    envs = make_vector_env(config, SEED, autoreset=mode)
    collector = Collector(
        envs, agent.family, agent.obs_normalizer, num_steps, torch.Generator().manual_seed(0), agent.device
    )
    try:
        rollout, episodes = collector.collect(agent.policy)
    finally:
        envs.close()
        agent.close()
    return SimpleNamespace(rollout=rollout, episodes=episodes, agent=agent, collector=collector)


# --- A1 to A4: numbers that are not finite, or too large --------------------------------------------------------------


PLACES = {"box": "observation[0]", "dict": "observation 'arm.joints'[1][0]"}


@pytest.mark.parametrize(
    ("fault", "space", "vectorization"),
    [(f"obs {x}", space, "sync") for x in NOT_FINITE for space in PLACES]
    + [(f"reward {x}", "box", "sync") for x in (*NOT_FINITE, "1e+39")]
    + [("obs nan", "box", "async"), ("obs -inf", "dict", "async"), ("reward inf", "box", "async")],
)
def test_what_is_not_finite_is_refused_by_environment_step_key_and_index_and_moves_no_bit(fault, space, vectorization):
    kind, value = fault.split()
    # Step 40 of a lifetime is step 8 of the third rollout of 16; what it answers is what step 9 acts on.
    what, step = ("reward", 8) if kind == "reward" else (PLACES[space], 9)
    told = re.escape(f"{what} of environment 1 is {value} at step {step} ")
    parts = space == "dict"
    agent = agent_with(
        fault,
        at=40,
        parts=parts,
        env__vectorization=vectorization,
        env__normalize_obs=True,
        env__normalize_reward=True,
    )
    agent.iterate()
    agent.iterate()
    before = learnt(agent)
    assert before["learner"]["adam_steps"].min() > 0
    with pytest.raises(EnvDataError, match=told):
        agent.iterate()
    assert_bit_equal(learnt(agent), before)
    assert all_finite(before["learner"]["policy"])
    agent.close()


def test_training_may_go_on_after_such_an_error_with_new_episodes_everywhere():
    agent = agent_with("reward nan", at=3)
    with pytest.raises(EnvDataError, match="reward of environment 1 is nan at step 3 "):
        agent.iterate()
    metrics = agent.iterate()  # the fault is sent once
    assert all_finite(metrics)
    assert all_finite(learnt(agent)["learner"])
    assert agent.steps == 32


@pytest.mark.parametrize(("reward", "scale"), [("1e38", 1e-30), ("1e20", 1e-20)])
def test_a_reward_whose_return_squared_is_no_float32_is_refused_with_what_to_do(reward, scale):
    # 1e20² = 1e40 is more than float32's largest, 3.4e38; so is 1e38².
    agent = agent_with(f"reward {reward}", at=20)
    agent.iterate()
    before = learnt(agent)
    with pytest.raises(EnvDataError) as told:
        agent.iterate()
    # The reward of row 20 - 16 = 4 is a part of the returns from the rollout's beginning on: step 0.
    for word in ("environment 1 from step 0 ", "env.reward_scale", "env.reward_limit", "1e+18"):
        assert word in str(told.value)
    assert_bit_equal(learnt(agent), before)
    assert not isinstance(told.value, ValueError)
    for setting in ({"env__reward_limit": 10.0}, {"env__reward_scale": scale}):
        mended = agent_with(f"reward {reward}", at=20, **setting)
        metrics = [mended.iterate(), mended.iterate()]
        assert all(all_finite(m) for m in metrics)
        assert all_finite(learnt(mended))
        assert metrics[1]["optim/skipped"] == 0.0


def test_a_limit_clips_the_reward_that_is_learnt_from_and_leaves_the_logged_return():
    # 7 rewards of 1 and one of 1e20: an episode of 8 steps in environment 1, of 8 in environment 0.
    agent = agent_with("reward 1e20", at=5, length=8, env__reward_limit=10.0)
    metrics = agent.iterate()
    # Four episodes: 8, 8, 8 and 7 + 1e20.
    assert metrics["rollout/return_mean"] == pytest.approx(1e20 / 4)
    assert all_finite(learnt(agent))


def test_rewards_that_add_up_to_more_than_float32_holds_never_become_an_advantage():
    # What the largest scale makes of rewards of 1 is refused long before a sum of it could be infinite.
    agent = agent_in("Sends", env__kwargs__fault="none", env__reward_scale=1e30)
    before = learnt(agent)
    with pytest.raises(EnvDataError, match=r"env\.reward_scale"):
        agent.iterate()
    assert_bit_equal(learnt(agent), before)


ARGUMENTS = ["train", "--env", "faulty_envs:Sends", "--seed=7", "--total-steps=96", "--env.num-envs=2", "--quiet"]
ARGUMENTS += ["--training.num-steps=16", "--training.minibatch-size=8", "--training.num-epochs=1"]
ARGUMENTS += ["--runtime.checkpoint-every=1", "--env.kwargs.at=40"]


@pytest.mark.parametrize(
    ("fault", "vectorization", "words"),
    [
        (
            "obs nan",
            "async",
            ["observation[0]", "environment 1", "nan", "step 9", "weights and checkpoints are as before"],
        ),
        ("reward inf", "sync", ["reward", "environment 1", "inf", "step 8", "--resume"]),
        ("reward 1e38", "sync", ["environment 1", "env.reward_limit"]),
        ("reward None", "async", ["environment 1 (faulty_envs:Sends)", "NoneType"]),
        ("obs of shape (3,)", "sync", ["environment 1", "(3,)", "(2,)"]),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_command_exits_with_3_and_the_last_good_checkpoint_stays(
    fault, words, vectorization, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    status = main([*ARGUMENTS, "--env.kwargs.fault", fault, "--env.vectorization", vectorization])
    out, err = capsys.readouterr()
    assert status == 3
    assert out == ""
    assert err.startswith("ppo-kl: error: ")
    for word in words:
        assert word in err
    (run,) = tmp_path.glob("runs/*/kl_adaptive/seed7")
    assert not (run / "result.json").exists()
    kept = Agent.load(run)
    assert kept.steps == 64
    assert all_finite(learnt(kept))


def test_the_same_holds_in_an_optimised_python(tmp_path):
    lines = [
        "from faulty_envs import agent_in",
        "from ppo_kl.errors import EnvDataError",
        "for fault in ('obs nan', 'reward inf', 'reward 1e38', 'reward None', 'terminated None'):",
        "    agent = agent_in('Sends', **{'env.kwargs.fault': fault})",
        "    before = {name: x.clone() for name, x in agent.policy.state_dict().items()}",
        "    try:",
        "        agent.iterate()",
        "    except EnvDataError as error:",
        "        same = all(x.equal(before[name]) for name, x in agent.policy.state_dict().items())",
        "        print(same, __debug__, str(error)[:40])",
    ]
    environment = {"PYTHONPATH": str(Path(faulty_envs.__file__).parent), "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-O", "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "True False observation[0] of environment 1 is nan a",
        "True False reward of environment 1 is inf at step 5",
        "True False the return of environment 1 from step 0 ",
        "True False environment 1 (faulty_envs:Sends), step ",
        "True False environment 1 (faulty_envs:Sends), step ",
    ]


# --- A5: the episode is cut instead -----------------------------------------------------------------------------------


# What the environment gave in the step that is cut counts, where it is a number.
CUTS = [(f"obs {x}", space, 1.0) for x in NOT_FINITE for space in PLACES]
CUTS += [(f"reward {x}", "box", 0.0) for x in (*NOT_FINITE, "1e+39")]
OTHERS = [("sync", MODES[1]), ("sync", MODES[2]), ("async", MODES[0])]


@pytest.mark.parametrize(
    ("fault", "space", "reward", "vectorization", "mode"),
    [(*cut, "sync", MODES[0]) for cut in CUTS]
    + [(*cut, *how) for cut in (CUTS[0], CUTS[1], CUTS[-2]) for how in OTHERS],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_truncate_cuts_the_episode_and_bootstraps_from_its_last_finite_observation(
    fault, space, reward, vectorization, mode
):
    run = collected(fault, parts=space == "dict", nonfinite="truncate", vectorization=vectorization, mode=mode)
    rollout, t, i = run.rollout, 5, FAULTY_ENV
    assert rollout.truncated.nonzero().tolist() == [[t, i]]
    assert not rollout.terminated.any()
    assert all(torch.isfinite(x).all() for _, x in each_part(rollout.obs))
    assert rollout.reward[t, i] == reward
    # Step 5 acted on the observation of row 5, and it is the last that was finite: the cut row is its own successor.
    last_finite = over_parts(lambda x: x[t, i][None], rollout.obs)
    with torch.no_grad():
        expected = run.agent.policy(last_finite).value.item()
    assert rollout.next_value[t, i].item() == pytest.approx(expected, abs=1e-6)
    assert rollout.next_value[t, i].item() == pytest.approx(rollout.value[t, i].item(), abs=1e-6)
    assert run.collector.nonfinite == 1
    # Six steps of the episode that was cut; the other environment's goes on.
    assert run.episodes.lengths == [6]
    assert run.episodes.returns == [5.0 + reward]


@pytest.mark.parametrize("mode", MODES[:2], ids=lambda mode: mode.name)
def test_after_a_cut_the_next_episode_begins_with_its_own_first_observation(mode):
    run = collected("obs nan", nonfinite="truncate", mode=mode)
    first = 6 if mode is MODES[0] else 7  # NEXT_STEP has a row in which it only resets
    # obs = (environment, step) / 100.
    shown = run.rollout.obs[first:, FAULTY_ENV] * 100
    torch.testing.assert_close(shown[:, 1], torch.arange(len(shown), dtype=torch.float32))
    torch.testing.assert_close(shown[:, 0], torch.ones(len(shown)))
    assert (~run.rollout.valid).nonzero().tolist() == ([] if first == 6 else [[6, FAULTY_ENV]])


@BOTH
@pytest.mark.parametrize("fault", ["obs nan", "reward -inf"])
def test_truncate_counts_what_it_cut_and_training_stays_finite(fault, vectorization):
    agent = agent_with(fault, at=20, env__nonfinite="truncate", env__vectorization=vectorization, parts=True)
    metrics = [agent.iterate() for _ in range(3)]
    # Step 20 is in the second rollout of 16; the metric is of the run so far.
    assert [m["env/nonfinite"] for m in metrics] == [0.0, 1.0, 0.0]
    assert all(all_finite(m) for m in metrics)
    assert all_finite(learnt(agent))
    agent.close()


def test_without_truncate_there_is_no_such_metric():
    assert "env/nonfinite" not in agent_with("none").iterate()


@BOTH
@pytest.mark.parametrize("parts", [False, True])
def test_a_reset_that_is_not_finite_is_an_error_also_with_truncate(parts, vectorization):
    envs = make_vector_env(
        fault_config("obs nan", at_reset=True, parts=parts, nonfinite="truncate", vectorization=vectorization), SEED
    )
    with pytest.raises(EnvDataError, match=r"environment 1 \(faulty_envs:Sends\).*reset .*not finite.*nan"):
        envs.reset()
    envs.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_truncate_and_stop_train_alike_where_everything_is_finite(vectorization):
    agents = [
        agent_with("none", length=5, env__nonfinite=n, env__vectorization=vectorization) for n in ("stop", "truncate")
    ]
    for agent in agents:
        agent.iterate()
    assert_bit_equal(learnt(agents[1]), learnt(agents[0]))
    for agent in agents:
        agent.close()


# --- A8: outside of what is declared ----------------------------------------------------------------------------------


def test_what_lies_outside_the_declared_bounds_is_counted_in_one_warning_and_used_as_it_is():
    with pytest.warns(EnvWarning, match=r"^2 numbers of the observations .*lowest -3, the highest 5;") as told:
        run = collected("obs outside")
    assert len(told) == 1
    assert run.rollout.obs[6, FAULTY_ENV].tolist() == [-3.0, 5.0]
    assert run.rollout.obs[6, 0].tolist() == pytest.approx([0.0, 0.06])


def test_the_warning_is_given_once_in_a_run():
    agent = agent_in("Outside")
    with pytest.warns(EnvWarning, match="^32 numbers of the observations"):  # 16 steps × 2 environments × 1 number
        agent.iterate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.iterate()


def test_an_image_declared_as_float_and_sent_as_bytes_is_taken_as_it_is_with_a_warning():
    # Declared from 0 to 1, sent as 0 … 255: 7 of 8 rows of each environment show more than 1.
    agent = agent_in("Bytes", training__num_steps=8)
    with pytest.warns(EnvWarning, match=r"highest 7;"):
        assert all_finite(agent.iterate())


# --- A10 to A12: ends -------------------------------------------------------------------------------------------------


@BOTH
def test_what_is_terminated_and_truncated_at_once_is_terminated_and_not_bootstrapped(vectorization):
    run = collected("both ends", vectorization=vectorization)
    rollout, t, i = run.rollout, 5, FAULTY_ENV
    assert rollout.terminated.nonzero().tolist() == [[t, i]]
    assert not rollout.truncated.any()
    estimated = gae(
        rollout.reward,
        rollout.value,
        rollout.next_value,
        rollout.terminated,
        rollout.truncated,
        rollout.valid,
        gamma=0.9,
        gae_lambda=0.8,
    )
    # δ = r + γ·0 − V, and nothing of the next episode is added: A = 1 − V, and the return is the reward.
    assert estimated[0][t, i].item() == pytest.approx(1.0 - rollout.value[t, i].item())
    assert estimated[1][t, i].item() == pytest.approx(1.0)


@BOTH
@pytest.mark.parametrize("name", ["OneStep", "Bandit"])
def test_an_environment_that_ends_with_every_step_trains_and_has_as_many_episodes_as_steps(name, vectorization):
    agent = small_agent(name, env__vectorization=vectorization)
    metrics = agent.iterate()
    assert metrics["rollout/episodes"] == agent.steps == 32
    assert metrics["rollout/length_mean"] == 1.0
    assert all_finite(metrics)
    assert all_finite(learnt(agent))
    agent.close()


def test_a_run_in_which_no_episode_ends_has_no_return_and_no_length(tmp_path, monkeypatch, capsys):
    agent = small_agent("Endless")
    for metrics in (agent.iterate(), agent.iterate()):
        assert metrics["rollout/episodes"] == 0.0
        assert not {tag for tag in metrics if tag.startswith(("rollout/return", "rollout/length"))}
        assert all_finite(metrics)
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--env",
        "toy_envs:toy/Endless-v0",
        "--total-steps",
        "64",
        "--env.num-envs",
        "2",
        "--training.num-steps",
        "16",
    ]
    assert main(["train", *arguments, "--training.minibatch-size", "8"]) == 0
    assert "no episode ended" in capsys.readouterr().out


# --- A13 and A14: arrays that are used twice --------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", ["Counter", "CopyingCounter"], ids=["overwrites-in-place", "copies"])
def test_the_policy_that_acted_is_the_stored_one_and_its_kl_before_the_update_is_0(name, vectorization):
    agent = small_agent(name, env__vectorization=vectorization)
    assert [agent.iterate()["kl/before_update"] for _ in range(3)] == [0.0, 0.0, 0.0]
    agent.close()


def test_an_environment_that_overwrites_its_array_trains_as_one_that_copies_it():
    agents = [small_agent(name) for name in ("Counter", "CopyingCounter")]
    for agent in agents:
        agent.iterate()
    assert_bit_equal(learnt(agents[0]), learnt(agents[1]))


@BOTH
@pytest.mark.parametrize("actions", list(faulty_envs.Writes.ACTION_SPACES))
def test_an_environment_that_overwrites_the_action_it_receives_leaves_the_stored_one(actions, vectorization):
    agent = agent_in("Writes", env__kwargs__actions=actions)
    config = EnvConfig("faulty_envs:Writes", {"actions": actions}, num_envs=2, vectorization=vectorization)
    envs = make_vector_env(config, SEED)
    collector = Collector(envs, agent.family, agent.obs_normalizer, STEPS, agent._generator("action"), agent.device)
    rollout, _ = collector.collect(agent.policy)
    log = np.stack(envs.env.get_attr("log"), 1)  # as it was received
    envs.close()
    stored = rollout.action.double().numpy()
    np.testing.assert_array_equal(stored.reshape(log.shape), log)
    assert len(np.unique(stored)) > 1


# --- A15: info --------------------------------------------------------------------------------------------------------


def test_info_that_cannot_be_sent_is_huge_or_changes_is_ignored():
    told = {}
    for vectorization in ("sync", "async"):
        agent = agent_with("info that cannot be sent", env__vectorization=vectorization, length=6)
        metrics = agent.iterate()
        told[vectorization] = learnt(agent)
        assert metrics["rollout/length_mean"] == 6.0
        agent.close()
    assert_bit_equal(told["async"], told["sync"])


# --- indices ----------------------------------------------------------------------------------------------------------


class Misnumbered(gym.Env):
    """Observations of a Discrete from 5 to 7, the third of which is 8."""

    def __init__(self, parts=False):
        space = spaces.Discrete(3, start=5)
        self.observation_space = spaces.Dict(room=space) if parts else space
        self.action_space, self.parts = spaces.Discrete(2), parts

    def _obs(self):
        room = 8 if self.steps == 2 else 6
        return {"room": room} if self.parts else room

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        return self._obs(), 1.0, False, False, {}


gym.register("toy/Misnumbered-v0", entry_point=Misnumbered)
gym.register("toy/MisnumberedPart-v0", entry_point=Misnumbered, kwargs={"parts": True})


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("name", "called"), [("Misnumbered", "observation"), ("MisnumberedPart", "observation 'room'")]
)
def test_an_index_outside_of_its_space_is_refused_before_anybody_acts_on_it(name, called, vectorization):
    agent = small_agent(name, env__vectorization=vectorization)
    with pytest.raises(
        EnvDataError, match=f"{called} of environment 0 is 8, outside of its space from 5 to 7 at step 2"
    ) as e:
        agent.iterate()
    agent.close()
    assert "nonfinite" not in str(e.value)


# --- only the last observation is bad, and evaluation -----------------------------------------------------------------


class BadEnd(gym.Env):
    """Ends for good after three steps, with an observation that is not finite."""

    def __init__(self):
        self.observation_space, self.action_space = spaces.Box(0.0, 1.0, (1,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == 3
        return np.full(1, np.nan if over else 1.0, np.float32), 1.0, over, False, {}


gym.register("toy/BadEnd-v0", entry_point=BadEnd)


def test_an_episode_that_is_over_for_good_stays_so_where_only_its_last_observation_is_bad():
    agent = small_agent("BadEnd", env__nonfinite="truncate")
    rollout, episodes = agent._collector.collect(agent.policy)
    assert rollout.terminated.sum() == 10  # 16 steps of 2 environments, each third step
    assert not rollout.truncated.any()
    assert set(episodes.returns) == {3.0}


@pytest.mark.parametrize("name", ["Misnumbered", "Faulty_reward_nan", "Faulty_obs_inf"])
def test_evaluation_refuses_what_training_does(name):
    config = {"env.num_envs": 1} if name == "Misnumbered" else {}
    agent = small_agent(name, **{key.replace(".", "__"): value for key, value in config.items()})
    if name == "Misnumbered":
        with pytest.raises(EnvDataError, match="is 8, outside of its space"):
            agent.evaluate(1)
        return
    envs = make_vector_env(agent.config.env, SEED)
    with pytest.raises(EnvDataError, match="of environment 1 is"):
        evaluate(lambda obs, *_: np.zeros(len(obs), np.int64), envs, 20)
    envs.close()
