"""What an agent takes over from a state: all of it or nothing, whatever else the state holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forged import forge
from short_runs import differences
from toy_envs import small_agent

from ppo_kl import checkpoint
from ppo_kl.errors import CheckpointError
from ppo_kl.training.agent import Agent

EVERYTHING_ON = {"env__normalize_obs": True, "env__normalize_reward": True, "training__lr_schedule": "linear"}


@pytest.fixture
def agent() -> Agent:
    return small_agent("CartPole-v1", "kl_adaptive", **EVERYTHING_ON)


def moved(agent: Agent) -> dict[str, Any]:
    """The state after an iteration, in which no number is as it was made."""
    agent.iterate()
    return agent.state_dict()


def require_refused(agent: Agent, state: dict[str, Any], match: str) -> None:
    before = agent.state_dict()
    with pytest.raises(CheckpointError, match=f"(?s){match}.*nothing was loaded"):
        agent.load_state_dict(state)
    assert not differences(before, agent.state_dict())


class Read(dict[str, Any]):
    """A state that notes which of its keys are read."""

    def __init__(self, *items: Any) -> None:
        super().__init__(*items)
        self.keys_read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.keys_read.add(key)
        return super().__getitem__(key)


def test_what_is_read_is_what_is_written_and_nothing_of_it_is_left(agent):
    state = Read(agent.state_dict())
    state["learner"] = learner = Read(state["learner"])
    agent.load_state_dict(state)
    assert state.keys_read == set(agent.state_dict())
    assert learner.keys_read == set(agent.state_dict()["learner"])


def test_a_state_is_tensors_and_plain_values_and_nothing_else(agent):
    def kinds(x: Any) -> set[type]:
        inside = x.values() if isinstance(x, dict) else x if isinstance(x, list) else ()
        return {type(x)}.union(*(kinds(item) for item in inside))

    assert kinds(moved(agent)) <= {dict, list, torch.Tensor, str, int, float, bool, type(None)}


@pytest.mark.parametrize("part", ["", "learner", "objective", "obs_normalizer", "reward_scaler"])
def test_a_key_that_has_no_place_is_refused_by_its_name_in_every_part(agent, part):
    state = agent.state_dict()
    (state[part] if part else state)["stowaway"] = torch.zeros(1)
    require_refused(agent, state, "stowaway")


def missing_keys() -> list[tuple[str, str]]:
    state = small_agent("CartPole-v1", "kl_adaptive", **EVERYTHING_ON).state_dict()
    parts = ("learner", "objective", "obs_normalizer", "reward_scaler")
    return [("", key) for key in state] + [(part, key) for part in parts for key in state[part]]


@pytest.mark.parametrize(("part", "key"), missing_keys())
def test_a_key_that_is_missing_is_refused_by_its_name_in_every_part(agent, part, key):
    state = agent.state_dict()
    moved(agent)
    del (state[part] if part else state)[key]
    require_refused(agent, state, key.split(".")[-1])


@pytest.mark.parametrize("wrong", [None, 3, "x", [], {}, torch.zeros(7)], ids=str)
@pytest.mark.parametrize("key", ["learner", "objective", "obs_normalizer", "reward_scaler", "action_generator"])
def test_a_part_that_is_something_else_is_refused_and_nothing_is_half_loaded(agent, key, wrong):
    state = agent.state_dict()
    moved(agent)
    require_refused(agent, {**state, key: wrong}, "does not fit this agent")


def test_another_size_of_network_is_refused_naming_both(agent):
    other = small_agent("CartPole-v1", "kl_adaptive", **EVERYTHING_ON, policy__hidden_sizes=(5,))
    require_refused(agent, other.state_dict(), r"this policy \(\d+, 4\), given \(5, 4\)")


def test_another_objective_is_refused_naming_both(agent):
    other = small_agent("CartPole-v1", "kl_adaptive", **EVERYTHING_ON, objective__controller__kl_target=0.02)
    require_refused(agent, other.state_dict(), r"kl_target=0\.01.*kl_target=0\.02")


def test_parameters_of_double_precision_load_equal(agent):
    state = moved(agent)
    wide = {name: x.double() for name, x in state["learner"]["policy"].items()}
    other = small_agent("CartPole-v1", "kl_adaptive", **EVERYTHING_ON)
    other.load_state_dict({**state, "learner": {**state["learner"], "policy": wide}})
    assert not differences(state, other.state_dict())


def test_names_that_torch_compile_gives_load_as_those_they_stand_for(agent):
    state = moved(agent)
    compiled = {
        part: {f"_orig_mod.{name}": x for name, x in state["learner"][part].items()}
        for part in ("policy", "exp_avg", "exp_avg_sq")
    }
    other = small_agent("CartPole-v1", "kl_adaptive", **EVERYTHING_ON)
    other.load_state_dict({**state, "learner": {**state["learner"], **compiled}})
    assert not differences(state, other.state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_checkpoint_of_a_gpu_loads_equal_on_the_cpu_and_back(tmp_path):
    on_gpu = small_agent("CartPole-v1", "kl_adaptive", **EVERYTHING_ON, runtime__device="cuda")
    state = moved(on_gpu)
    on_gpu.save(tmp_path / "gpu.pt")
    on_cpu = Agent.load(tmp_path / "gpu.pt", device="cpu")
    on_cpu.save(tmp_path / "cpu.pt")
    back = Agent.load(tmp_path / "cpu.pt", device="cuda")
    for loaded in (on_cpu, back):
        assert not differences({**state, "config": ""}, {**loaded.state_dict(), "config": ""})


def test_a_format_of_the_future_is_refused_naming_both_numbers(agent, tmp_path):
    forge(tmp_path / "agent.pt", {**agent.state_dict(), "format": checkpoint.FORMAT_VERSION + 1})
    both = f"format {checkpoint.FORMAT_VERSION + 1}, this version reads {checkpoint.FORMAT_VERSION}"
    with pytest.raises(CheckpointError, match=both):
        Agent.load(tmp_path / "agent.pt")


def test_strictly_a_run_folder_whose_newest_checkpoint_is_damaged_is_refused(agent, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for steps in (1, 2):
        agent.save(checkpoint.path_at(folder, steps))
    checkpoint.path_at(folder, 2).write_bytes(b"")
    with pytest.raises(CheckpointError, match="file damaged"):
        Agent.load(tmp_path, strict=True)
