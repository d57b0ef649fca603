"""Recurrent policies in training: states at episode ends, sequences, padding, checkpoints."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from toy_envs import SEED, env_config, small_agent, without_times

from ppo_kl.batch import flatten
from ppo_kl.diagnostics.measure import measure
from ppo_kl.envs.make import make_vector_env
from ppo_kl.errors import ConfigError
from ppo_kl.objectives.divergence import policy_kl
from ppo_kl.training.agent import Agent
from ppo_kl.training.collector import Collector

KINDS = [("gru", "separate"), ("lstm", "shared")]
kinds = pytest.mark.parametrize(("memory", "trunk"), KINDS)
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]
modes = pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)


def remembering(name="CopyingCounter", memory="gru", trunk="separate", **settings) -> Agent:
    agent = small_agent(
        name,
        policy__memory=memory,
        policy__memory_size=6,
        policy__trunk=trunk,
        training__sequence_length=5,
        **settings,
    )
    with torch.no_grad():  # so that what is remembered matters
        for parameter in agent.policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return agent


def rollouts_of(agent, mode=AutoresetMode.SAME_STEP, num_rollouts=3, num_steps=16):
    """Rollouts of three `Counter`s, on end."""
    envs = make_vector_env(env_config("CopyingCounter", num_envs=3), SEED, autoreset=mode)
    generator, device = torch.Generator().manual_seed(0), torch.device("cpu")
    collector = Collector(envs, agent.family, agent.obs_normalizer, num_steps, generator, device)
    rollouts = [collector.collect(agent.policy)[0] for _ in range(num_rollouts)]
    return rollouts, collector


def walked(agent, rollouts, i, next_obs):
    """Environment i's rows that count, by hand: (value, params, V(next)), with the memory of its own episode."""
    policy, state = agent.policy, agent.policy.initial_state(1)
    fresh, kept = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    rows = []
    for rollout in rollouts:
        for t in range(len(rollout.valid)):
            if not rollout.valid[t, i]:
                continue
            out = policy(rollout.obs[t, i][None], state, fresh if rollout.starts[t, i] else kept)
            state = out.state
            following = policy(next_obs(rollout, t, i)[None], state, kept).value
            rows.append((out.value, out.params[0], following))
    return rows


@torch.no_grad()
@modes
@kinds
def test_each_row_is_what_the_policy_says_with_the_memory_of_its_own_episode(memory, trunk, mode):
    agent = remembering(memory=memory, trunk=trunk)
    rollouts, _ = rollouts_of(agent, mode)
    ends = torch.cat([(r.terminated | r.truncated) & r.valid for r in rollouts]).sum()
    assert ends > 20
    for i in range(3):
        # The Counter's next observation: one step more in the same episode, also where the episode ends.
        rows = walked(agent, rollouts, i, lambda r, t, i: r.obs[t, i] + torch.tensor([0.0, 0.0, 1.0]))
        stored = [
            (r.value[t, i], r.params[t, i], r.next_value[t, i], r.terminated[t, i])
            for r in rollouts
            for t in range(len(r.valid))
            if r.valid[t, i]
        ]
        for (value, params, following), (v, p, n, terminated) in zip(rows, stored, strict=True):
            torch.testing.assert_close(v, value[0])
            torch.testing.assert_close(p, params)
            if not terminated:
                torch.testing.assert_close(n, following[0])


@torch.no_grad()
@modes
@kinds
def test_the_stored_policy_is_the_one_that_the_sequences_give(memory, trunk, mode):
    agent = remembering(memory=memory, trunk=trunk)
    (rollout, *_), _ = rollouts_of(agent, mode)
    batch = flatten(rollout, rollout.reward, rollout.reward, agent.obs_normalizer, sequence_length=5)
    assert batch.valid.sum() == rollout.valid.sum()
    assert len(batch.valid) > batch.valid.sum()  # some are padded
    out = agent.policy(batch.obs, batch.state)
    kl = policy_kl(agent.family.build(batch.params_old), agent.family.build(out.params))
    assert kl[batch.valid].abs().max() < 1e-6
    torch.testing.assert_close(out.value[batch.valid], batch.value_old[batch.valid])


@kinds
def test_whatever_stands_in_the_padding_changes_nothing(memory, trunk):
    results = []
    for spoilt in (False, True):
        agent = remembering(memory=memory, trunk=trunk)
        (rollout, *_), _ = rollouts_of(agent)
        adv = rollout.reward - rollout.reward.mean()
        batch = flatten(rollout, adv, rollout.reward, agent.obs_normalizer, sequence_length=5)
        if spoilt:
            padding = ~batch.valid
            for x in (batch.adv, batch.ret, batch.logp_old, batch.value_old):
                x[padding] = 1e30
            batch.obs.flatten(0, 1)[padding] = 7.0  # padding follows what counts: no memory of it is used
        metrics = agent.learner.update(batch, 0.0)
        measured = measure(agent.policy, agent.family, agent.objective, batch)
        results.append({**metrics, **measured, "weights": agent.learner.parameters.flat.detach().clone()})
    for name, clean in results[0].items():
        torch.testing.assert_close(results[1][name], clean, rtol=1e-5, atol=1e-7, msg=name)


def test_each_sequence_is_learned_from_once_an_epoch(monkeypatch):
    agent = remembering(training__num_epochs=3, training__minibatch_size=8)
    (rollout, *_), _ = rollouts_of(agent)
    adv = torch.arange(float(rollout.reward.numel())).view_as(rollout.reward)
    batch = flatten(rollout, adv, rollout.reward, agent.obs_normalizer, sequence_length=5)
    seen = []
    loss = agent.learner.loss
    monkeypatch.setattr(
        agent.learner, "loss", lambda output, b: seen.extend(b.adv[b.valid].tolist()) or loss(output, b)
    )
    agent.learner.update(batch, 0.0)
    assert sorted(seen) == sorted(rollout_adv for rollout_adv in adv.flatten().tolist() for _ in range(3))


@pytest.mark.parametrize("vectorization", ["sync", "async", "native"])
@kinds
def test_an_agent_learns_from_every_kind_of_vector_environment(memory, trunk, vectorization):
    agent = remembering("CartPole-v1", memory, trunk, env__vectorization=vectorization)
    metrics = [agent.iterate() for _ in range(3)]
    agent.close()
    assert all(np.isfinite(value) for m in metrics for value in m.values())
    assert all(m["kl/before_update"] < 1e-7 for m in metrics)
    assert all(m["kl/forward"] > 0 for m in metrics)


@kinds
def test_an_agent_comes_back_from_its_checkpoint(tmp_path, memory, trunk):
    agent = remembering("CartPole-v1", memory, trunk)
    agent.iterate()
    agent.save(tmp_path / "agent.pt")
    again = Agent.load(tmp_path / "agent.pt")
    for _ in range(2):
        assert without_times(again.iterate()) == without_times(agent.iterate())


@kinds
def test_a_checkpoint_holds_what_was_remembered_and_only_new_episodes_begin_without_it(memory, trunk):
    agent = remembering("CartPole-v1", memory, trunk)
    agent.iterate()
    saved = agent.state_dict()["memory"]
    remembered = agent._collector.state
    assert saved
    assert all(torch.equal(one, other) and one.any() for one, other in zip(saved, remembered, strict=True))
    again = remembering("CartPole-v1", memory, trunk)
    again.load_state_dict(agent.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(saved, again.state_dict()["memory"], strict=True))
    rollout, _ = again._ready_collector().collect(again.policy)
    assert all(torch.equal(x[0], one) for x, one in zip(rollout.state, saved, strict=True))
    again.load_state_dict({**agent.state_dict(), "envs": None})
    rollout, _ = again._ready_collector().collect(again.policy)
    assert not any(x[0].any() for x in rollout.state)


# --- acting -----------------------------------------------------------------------------------------------------------


def test_acting_needs_a_memory_and_moves_it():
    agent, obs = remembering("CartPole-v1"), np.ones(4, np.float32)
    with pytest.raises(ValueError, match="new_memory"):
        agent.act(obs)
    memory = agent.new_memory()
    agent.act(obs, memory=memory)
    once = memory.state
    assert once[0].any()
    agent.act(obs, memory=memory)
    assert not torch.equal(memory.state[0], once[0])
    memory.begin()
    agent.act(obs, memory=memory)
    assert torch.equal(memory.state[0], once[0])


def test_a_memory_is_of_as_many_streams_as_there_are_observations():
    agent = remembering("CartPole-v1")
    for obs, streams in ((np.ones((3, 4), np.float32), 1), (np.ones(4, np.float32), 3)):
        with pytest.raises(ValueError, match=f"memory is of {streams} streams"):
            agent.act(obs, memory=agent.new_memory(streams))
    assert agent.act(np.ones((3, 4), np.float32), memory=agent.new_memory(3)).shape == (3,)


def test_a_length_of_sequences_has_no_place_without_a_memory():
    with pytest.raises(ConfigError, match="sequence_length=5: would be ignored"):
        small_agent(training__sequence_length=5)


def test_cudnn_is_asked_to_train(monkeypatch):
    # In its other mode it refuses to go backward; the CPU does not care.
    asked = []
    gru = torch.gru
    monkeypatch.setattr(torch, "gru", lambda x, h, w, *options: asked.append(options[3]) or gru(x, h, w, *options))
    remembering("CartPole-v1").iterate()
    assert set(asked) == {True}
