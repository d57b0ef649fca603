"""Atari: lives end episodes for the learner, games for the log; returns are those of the game."""

import dataclasses

import numpy as np
import pytest
import torch

from ppo_kl.envs.make import make_vector_env
from ppo_kl.errors import ConfigError
from ppo_kl.load import load_config
from ppo_kl.training.agent import Agent
from ppo_kl.training.evaluation import evaluate

pytest.importorskip("ale_py")
NUM_ENVS = 3
SMALL = {"env.num_envs": 2, "env.kwargs.num_threads": 1, "training.num_steps": 8, "training.minibatch_size": 8}


def games(env="ALE/Breakout-v5", **settings):
    config = load_config(env=env, overrides={"env.num_envs": NUM_ENVS, "env.kwargs.num_threads": 1, **settings}).env
    return make_vector_env(config, seed=0)


def fire_and_wait(envs, steps):
    """Breakout: serve and do nothing else, so that every life is lost soon."""
    for t in range(steps):
        yield envs.step(np.full(NUM_ENVS, int(t % 8 == 0), np.int64))


def test_every_game_of_atari_has_the_one_shipped_setting():
    config = load_config(env="ALE/Pong-v5")
    shipped = load_config(env="atari")
    assert config.env.id == "ALE/Pong-v5"
    assert dataclasses.replace(config, env=shipped.env) == shipped
    assert dataclasses.replace(config.env, id=shipped.env.id) == shipped.env


def test_the_preprocessing_is_the_standard_one():
    envs = games()
    obs = envs.reset()
    envs.close()
    assert obs.shape == (NUM_ENVS, 4, 84, 84)
    assert obs.dtype == np.uint8
    assert [part.kind for part in envs.parts] == ["image"]


def test_a_lost_life_ends_an_episode_for_the_learner_and_a_game_for_the_log():
    envs = games()
    envs.reset()
    steps = list(fire_and_wait(envs, 400))
    envs.close()
    lives, over = (sum(x.sum() for x in xs) for xs in zip(*((s.terminated, s.over) for s in steps), strict=True))
    # Five lives to a game, lost one by one.
    assert over >= NUM_ENVS
    assert 5 * over <= lives <= 5 * over + 4 * NUM_ENVS
    assert all((s.terminated | ~s.over).all() for s in steps)
    assert all(s.valid.all() for s in steps)


def test_without_life_loss_a_game_is_an_episode():
    envs = games(**{"env.kwargs.life_loss_info": False})
    envs.reset()
    steps = list(fire_and_wait(envs, 200))
    envs.close()
    assert sum(s.over.sum() for s in steps) > 0
    assert all(np.array_equal(s.over, s.terminated | s.truncated) for s in steps)


def test_the_games_of_a_run_differ_and_a_seed_gives_the_same_ones_again():
    def first(seed):
        config = load_config(env="atari", overrides={"env.num_envs": NUM_ENVS, "env.kwargs.num_threads": 1}).env
        envs = make_vector_env(config, seed)
        envs.reset()
        seen = np.stack([step.obs for step in fire_and_wait(envs, 20)])
        envs.close()
        return seen

    one, again, other = first(0), first(0), first(1)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[:, 0], one[:, 1])


def test_logged_returns_are_of_whole_games_and_unclipped():
    # A brick of the upper rows gives 4 or 7 points: a policy at random meets them rarely, so the rewards are made up.
    envs = games()
    step = envs.env.env.step

    def generous(actions):
        obs, _, terminated, truncated, info = step(actions)
        return obs, np.full(NUM_ENVS, 7), terminated, truncated, info

    envs.env.env.step = generous
    serve = iter(range(10**6))
    result = evaluate(lambda *_: np.full(NUM_ENVS, int(next(serve) % 8 == 0), np.int64), envs, NUM_ENVS)
    envs.close()
    assert result.returns == [7.0 * length for length in result.lengths]
    assert min(result.lengths) > 5 * 10  # five lives


def test_clipping_rewards_where_nobody_sees_them_is_refused():
    with pytest.raises(ConfigError, match=r"env\.reward_limit=1"):
        games(**{"env.kwargs.reward_clipping": True})


def test_an_agent_learns_from_it_and_its_learner_sees_clipped_rewards(tmp_path):
    agent = Agent(load_config(env="ALE/Pong-v5", overrides={**SMALL, "runtime.device": "cpu"}))
    metrics = [agent.iterate() for _ in range(2)]
    assert all(np.isfinite(value) for m in metrics for value in m.values())
    assert all(m["kl/before_update"] <= 1e-6 for m in metrics)
    seen = agent.reward_scaler(torch.tensor([[7.0, -4.0], [0.5, 0.0]]))
    assert seen.tolist() == [[1.0, -1.0], [0.5, 0.0]]
    agent.save(tmp_path / "agent.pt")
    agent.close()
    Agent.load(tmp_path / "agent.pt").iterate()


def test_a_way_to_reset_in_which_games_cannot_be_told_from_lives_is_refused():
    with pytest.raises(ConfigError, match="autoreset_mode='NextStep': allowed: SameStep"):
        games(**{"env.kwargs.autoreset_mode": "NextStep"})
