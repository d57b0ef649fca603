"""What `runtime.compile: auto` comes to."""

import dataclasses
import shutil

import pytest
import torch
from every_family import EVERY_FAMILY, vector
from learner_parts import batch_of, make

from ppo_kl import Agent, load_config, train
from ppo_kl.config import TrainConfig
from ppo_kl.load import read_config
from ppo_kl.training import agent as agent_module
from ppo_kl.training import compile_choice
from ppo_kl.training.compile_choice import Choice, choose, overhead
from ppo_kl.training.engine import cannot_compile

OVERRIDES = {"env.num_envs": 2, "training.num_steps": 8, "training.minibatch_size": 5, "training.num_epochs": 3}


def config(**more) -> TrainConfig:
    return load_config(env="CartPole-v1", overrides={**OVERRIDES, **more})


def test_gradient_steps_are_counted_as_they_will_be_made():
    # 16 samples a rollout, so 100 steps are 7 rollouts, of 3 epochs of ⌈16 / 5⌉ = 4 minibatches: 7 · 3 · 4 = 84.
    assert config().planned_gradient_steps(100) == 84


@pytest.mark.parametrize(
    ("seconds", "steps", "compiled"),
    [(0.001, 100, False), (0.001, 18_000, True), (0.0, 10**9, False)],
)
def test_it_compiles_where_the_overhead_of_all_steps_outweighs_the_compiler(monkeypatch, seconds, steps, compiled):
    # 18,000 environment steps are 1,125 rollouts of 12 gradient steps: 13,500; of 1 ms each 0.8 is saved: 10.8 s.
    monkeypatch.setattr(compile_choice, "overhead", lambda learner, parts: seconds)
    monkeypatch.setattr(compile_choice, "cannot_compile", lambda device: None)
    monkeypatch.setattr(compile_choice, "SECONDS", 10.0)
    found = choose(make(), (vector(3),), config(), steps)
    assert found.compiled is compiled
    assert ("13,500" in found.reason) == (steps == 18_000)


def test_without_a_compiler_it_is_eager_and_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert choose(make(), (vector(3),), config(), 10**9) == Choice(False, "there is no C++ compiler (g++ or clang++)")


@pytest.mark.parametrize("family", EVERY_FAMILY.values(), ids=EVERY_FAMILY)
def test_measuring_the_overhead_leaves_everything_as_it_was(family):
    learner, other = make(family), make(family)
    assert 0 < overhead(learner, (vector(3),)) < 10
    for each in (learner, other):
        each.update(batch_of(other), 0.0)
    assert torch.equal(learner.parameters.flat, other.parameters.flat)
    assert torch.equal(learner.exp_avg_sq, other.exp_avg_sq)


def test_an_interrupt_while_the_overhead_is_measured_leaves_everything_as_it_was(monkeypatch):
    learner = make()
    before, step, steps = learner.state_dict(), learner.step, iter(range(3))

    def interrupted(batch):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        step(batch)

    monkeypatch.setattr(learner, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        overhead(learner, (vector(3),))
    assert torch.equal(learner.adam_steps, before["adam_steps"])
    assert torch.equal(learner.adam_steps, torch.zeros(2))


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_an_agent_can_be_settled_whatever_it_sees_and_remembers(memory):
    agent = Agent(dataclasses.replace(config(**{"policy.memory": memory}), total_steps=64))
    try:
        (line,) = agent.settle()
        assert line.startswith("runtime.compile auto: off: takes up to")
        assert agent.settle() == []
        assert agent.config.runtime.compile == "off"
    finally:
        agent.close()


@pytest.mark.parametrize("compiled", [True, False])
def test_what_auto_came_to_is_written_down_and_said_once(tmp_path, monkeypatch, capsys, compiled):
    monkeypatch.setattr("ppo_kl.training.engine.cannot_compile", lambda device: None)
    monkeypatch.setattr(agent_module, "choose", lambda *_: Choice(compiled, "because"))
    monkeypatch.setattr("ppo_kl.training.engine._compiled", lambda step, device, dynamic: step)
    result = train(dataclasses.replace(config(), total_steps=16, runs_dir=str(tmp_path)))
    said = capsys.readouterr().out
    assert f"runtime.compile auto: {'on' if compiled else 'off'}: because" in said
    assert f"gradient steps {'compiled' if compiled else 'eager'}" in said
    assert read_config(result.folder / "config.yaml").runtime.compile == ("on" if compiled else "off")
    assert (result.agent.learner.compiled is not None) is compiled


def test_an_agent_in_memory_weighs_each_time_it_learns(monkeypatch):
    asked = []
    monkeypatch.setattr(agent_module, "choose", lambda *given: asked.append(given[-1]) or Choice(False, ""))
    with_auto = Agent(config())
    try:
        with_auto.learn(16)
        with_auto.learn(32)
        assert asked == [16, 32]
        assert with_auto.config.runtime.compile == "auto"
    finally:
        with_auto.close()


@pytest.mark.skipif(cannot_compile(torch.device("cpu")) is not None, reason="nothing compiles here")
def test_a_stop_and_a_resume_of_compiled_steps_change_no_bit(tmp_path, monkeypatch):
    compiled = config(**{"runtime.compile": "on", "total_steps": 64})
    whole, half = Agent(compiled), Agent(compiled)
    assert whole.learner.compiled is not None
    for _ in range(4):
        whole.iterate()
    for _ in range(2):
        half.iterate()
    half.save(tmp_path / "half.pt")
    again = Agent.load(tmp_path / "half.pt")
    for _ in range(2):
        again.iterate()
    try:
        assert torch.equal(again.learner.parameters.flat, whole.learner.parameters.flat)
    finally:
        for agent in (whole, half, again):
            agent.close()
