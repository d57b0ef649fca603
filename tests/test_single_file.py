"""scripts/single_file_ppo.py: short, light, on both kinds of actions, and what it logs is what moves λ."""

import ast
import math
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from script_modules import ROOT, load_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PATH = ROOT / "scripts" / "single_file_ppo.py"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Train for a moment; the folder of the run and the return."""

    def trained(*arguments):
        monkeypatch.setattr(sys, "argv", ["single_file_ppo.py", "--runs-dir", str(tmp_path), *arguments])
        mean = load_script("single_file_ppo").main()
        return next(path.parent for path in tmp_path.rglob("checkpoint.pt")), mean

    return trained


def test_it_has_fewer_than_250_lines_and_takes_torch_gymnasium_numpy_and_the_objectives():
    text = PATH.read_text()
    assert len(text.splitlines()) < 250
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name.split(".")[0] for name in foreign} == {"torch", "gymnasium", "numpy", "ppo_kl"}
    assert {name for name in foreign if name.startswith("ppo_kl")} == {"ppo_kl.objectives"}


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_lambda_follows_the_exact_kl_of_every_rollout(env, run):
    folder, mean = run("--env", env, "--total-steps", "5000", "--kl-target", "0.005")
    log = EventAccumulator(str(folder))
    log.Reload()
    kls, lambdas = ([event.value for event in log.Scalars(tag)] for tag in ("kl/controlled", "penalty/lambda"))
    assert len(kls) == len(lambdas) == 4
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    after = [*lambdas[1:], saved["objective"]["kl_lambda"].item()]
    for kl, before, then in zip(kls, lambdas, after, strict=True):
        assert then == before * (2 if kl > 0.0075 else 0.5 if kl < 0.005 / 1.5 else 1)
    assert set(after) != {1.0}
    assert math.isfinite(mean)


def test_the_same_seed_gives_the_same_weights_and_another_one_others(run, tmp_path):
    def weights(seed):
        folder, _ = run("--objective", "clip", "--total-steps", "2048", "--seed", seed)
        state = torch.load(folder / "checkpoint.pt", weights_only=True)["agent"]
        (folder / "checkpoint.pt").unlink()
        return torch.cat([x.flatten() for x in state.values()])

    first, again, other = weights("1"), weights("1"), weights("2")
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_advantages_are_the_discounted_sum_of_errors_up_to_the_end_of_each_episode():
    script = load_script("single_file_ppo")
    gamma, lam, T, N = 0.9, script.GAE_LAMBDA, 12, 3
    reward, value, next_value = (torch.randn(T, N, dtype=torch.float64) for _ in range(3))
    over = (torch.rand(T, N) < 0.3).double()
    delta = reward + gamma * next_value - value
    expected = torch.zeros(T, N, dtype=torch.float64)
    for t in range(T):
        for n in range(N):
            for k in range(t, T):
                expected[t, n] += (gamma * lam) ** (k - t) * delta[k, n]
                if over[k, n]:
                    break
    torch.testing.assert_close(script.gae(reward, value, next_value, over, gamma), expected)


class OneStep(gym.Env):
    """Reward 1, and the episode is over: by termination or by truncation."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, terminated):
        self.terminated = terminated

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.ones(2, np.float32), 1.0, self.terminated, not self.terminated, {}


@pytest.mark.parametrize("terminated", [True, False])
def test_after_a_termination_nothing_is_worth_more_and_after_a_truncation_the_true_last_state_is(terminated, run):
    gym.register("OneStep-v0", OneStep, kwargs={"terminated": terminated})
    try:
        folder, _ = run("--env", "OneStep-v0", "--total-steps", "30000", "--objective", "clip")
    finally:
        del gym.registry["OneStep-v0"]
    script = load_script("single_file_ppo")
    agent = script.ActorCritic(OneStep.action_space, 2)
    agent.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["agent"])
    with torch.no_grad():
        start, end = agent(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))[1].tolist()
    # Only the first state is ever collected: V is 1 there, and 1 + γ V(end) where the end counts.
    assert start == pytest.approx(1.0 if terminated else 1 + script.DISCRETE["gamma"] * end, rel=0.1)
    assert terminated or start > 5


class Unusual(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space


@pytest.mark.parametrize(
    "space",
    [gym.spaces.Discrete(3, start=5), gym.spaces.MultiBinary(2), gym.spaces.Box(-1, 1, (2, 2), np.float32)],
    ids=str,
)
def test_actions_that_it_cannot_do_are_refused_by_name(space):
    gym.register("Unusual-v0", Unusual, kwargs={"action_space": space}, disable_env_checker=True)
    try:
        with pytest.raises(SystemExit, match=r"Unusual-v0.*this file takes vectors"):
            load_script("single_file_ppo").make_env("Unusual-v0")
    finally:
        del gym.registry["Unusual-v0"]


def test_observations_that_it_cannot_do_are_refused_by_name(run):
    with pytest.raises(SystemExit, match=r"FrozenLake-v1.*this file takes vectors"):
        run("--env", "FrozenLake-v1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "steps", "better_than"), [("CartPole-v1", 100_000, 200), ("Pendulum-v1", 100_000, -500)]
)
def test_it_learns(env, steps, better_than, run):
    _, mean = run("--env", env, "--total-steps", str(steps))
    assert mean > better_than
