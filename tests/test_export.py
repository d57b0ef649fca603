"""An export acts as the agent it was made of, says what it is, and is left only where it does."""

import json
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import my_nets
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
import yaml
from every_family import EVERY_FAMILY
from gymnasium import spaces
from toy_envs import small_agent

from ppo_kl import Agent
from ppo_kl.cli import main
from ppo_kl.errors import CheckpointError, ConfigError, OutputError
from ppo_kl.export import export_run, folder, load
from ppo_kl.export import onnx as graphs
from ppo_kl.export.acting import answers, leaves, sent, trial

OBSERVATIONS = {
    "Dict": spaces.Dict(
        # Not in the order of the alphabet, and alike: a graph that took one for the other would be noticed.
        {"b": spaces.Box(-1.0, 1.0, (2,)), "a": spaces.Box(-1.0, 1.0, (2,)), "turn": spaces.Discrete(3, start=5)}
    ),
    "Tuple": spaces.Tuple((spaces.MultiDiscrete([2, 3], start=[1, -1]), spaces.Dict({"x": spaces.MultiBinary(2)}))),
    "Image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
}


class Noise(gym.Env):
    """Five steps of observations drawn from their space."""

    def __init__(self, space):
        self.observation_space, self.action_space = OBSERVATIONS[space], spaces.Discrete(2, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 5, False, {}


for _name in OBSERVATIONS:
    gym.register(f"toy/Noise{_name}-v0", entry_point=Noise, disable_env_checker=True, kwargs={"space": _name})


def saved(path, name="CartPole-v1", **overrides):
    """A checkpoint of an agent that has learned a little, so that its normaliser and its scales have moved."""
    overrides = {"training__num_steps": 8, "training__lr": 1e-3, **overrides}
    agent = small_agent(name, **overrides)
    try:
        agent.learn(16)
        agent.save(path / "agent.pt")
    finally:
        agent.close()
    return path / "agent.pt"


def equal(agent, other, observations):
    ours, theirs = answers(agent, observations), answers(other, observations)
    return all(np.array_equal(x[k], y[k]) for x, y in zip(ours, theirs, strict=True) for k in x)


# --- safetensors ------------------------------------------------------------------------------------------------------

KINDS = {
    "Discrete, normalised": {"name": "CartPole-v1", "env__normalize_obs": True},
    "MultiDiscrete": {"name": "StrictMultiDiscrete"},
    "MultiBinary": {"name": "StrictMultiBinary"},
    "Box": {"name": "StrictBox"},
    "Box, rescaled": {"name": "StrictBox", "policy__action_transform": "rescale"},
    "Box, tanh": {"name": "StrictBox", "policy__distribution": "tanh_gaussian"},
    "Box, Beta": {"name": "StrictBox", "policy__distribution": "beta"},
    "Box, full": {"name": "StrictBox", "policy__distribution": "full_gaussian"},
    "Box of one float64": {"name": "StrictScalar"},
    "Dict": {"name": "StrictDict"},
    "Tuple with float16": {"name": "StrictTuple"},
    "Dict obs": {"name": "NoiseDict", "env__normalize_obs": True},
    "Tuple obs": {"name": "NoiseTuple"},
    "images": {"name": "NoiseImage"},
    "GRU": {"name": "CartPole-v1", "policy__memory": "gru"},
    "LSTM, shared": {"name": "CartPole-v1", "policy__memory": "lstm", "policy__trunk": "shared"},
    "custom": {"name": "CartPole-v1", "policy__module": "my_nets:Buffered"},
    "custom, recurrent": {"name": "CartPole-v1", "policy__module": "my_nets:Recurrent"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_acts_bit_for_bit_as_the_agent(tmp_path, kind):
    path = saved(tmp_path, **KINDS[kind])
    done = export_run(path, tmp_path / "out", "safetensors", episodes=0)
    assert done.files == ["README.md", "config.yaml", "policy.safetensors", "spaces.json"]
    agent, other = Agent.load(path), load(done.folder, device="cpu")
    assert equal(agent, other, trial(agent))
    assert answers(agent, trial(agent))[0]["params"].std(0).max() > 1e-4, "answers alike, which no test can tell apart"
    assert (other.steps, other.iterations) == (agent.steps, agent.iterations)


def test_what_is_loaded_plays_the_same_episodes(tmp_path):
    path = saved(tmp_path, env__normalize_obs=True)
    done = export_run(path, tmp_path / "out", "safetensors", episodes=0)
    assert load(done.folder).evaluate(3) == Agent.load(path).evaluate(3)


def test_weights_that_act_differently_are_noticed_and_nothing_is_left(tmp_path, monkeypatch):
    path = saved(tmp_path)
    save = safetensors.torch.save

    def spoiled(tensors, metadata):
        bias = tensors["policy.actor.last.bias"]
        return save({**tensors, "policy.actor.last.bias": bias + torch.tensor([1.0, 0.0])}, metadata)

    monkeypatch.setattr(safetensors.torch, "save", spoiled)
    with pytest.raises(CheckpointError, match=r"policy.safetensors: .* differs from the agent's; nothing was exported"):
        export_run(path, tmp_path / "out", "safetensors", episodes=0)
    assert [p.name for p in tmp_path.iterdir()] == ["agent.pt"]


# --- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Box, tanh", "Tuple with float16", "Dict obs", "GRU"])
def test_the_graph_acts_as_the_agent_and_says_what_it_takes(tmp_path, kind):
    path = saved(tmp_path, **KINDS[kind])
    done = export_run(path, tmp_path / "out", "onnx", episodes=0)
    assert done.files == ["README.md", "config.yaml", "policy.onnx", "spaces.json"]
    assert 0 <= done.onnx_difference <= 1e-3 if "float16" in kind else done.onnx_difference <= 1e-5
    agent = Agent.load(path)
    session = onnxruntime.InferenceSession(done.folder / "policy.onnx")
    obs = {name: x[:3].numpy() for name, x in leaves(trial(agent)[0], "obs").items()}
    state = {x.name: np.full((3, x.shape[1]), 7, np.float32) for x in session.get_inputs() if x.name[:5] == "state"}
    starts = {"starts": np.ones(3, bool)} if agent.recurrent else {}
    found = dict(zip([x.name for x in session.get_outputs()], session.run(None, obs | state | starts), strict=True))
    for name, expected in answers(agent, trial(agent))[0].items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_allclose(found[name], expected[:3], rtol=1e-3 if "float16" in kind else 1e-5, atol=1e-5)
    assert {x.shape[0] for x in session.get_inputs()} == {"batch"}


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_actions_in_torch_are_those_that_the_family_sends(name):
    family = EVERY_FAMILY[name]
    generator = torch.Generator().manual_seed(0)
    action = family.sample(3 * torch.randn(1000, family.num_params, generator=generator), generator)
    expected, found = leaves(family.to_env(action)), sent(family, action)
    assert list(found) == list(expected)
    for leaf, x in expected.items():
        assert found[leaf].numpy().dtype == x.dtype
        np.testing.assert_allclose(found[leaf].numpy(), x, rtol=1e-6, atol=1e-12)


def test_the_graph_names_no_file_of_this_machine(tmp_path):
    done = export_run(saved(tmp_path), tmp_path / "out", "onnx", episodes=0)
    model = onnx.load(done.folder / "policy.onnx")
    onnx.checker.check_model(model, full_check=True)
    content = (done.folder / "policy.onnx").read_bytes()
    assert b".py" not in content
    assert str(tmp_path).encode() not in content


def test_a_graph_that_acts_differently_is_noticed_and_nothing_is_left(tmp_path, monkeypatch):
    path = saved(tmp_path, "Pendulum-v1")
    made = graphs.to_onnx

    def spoiled(agent):
        with torch.no_grad():
            agent.policy.actor.last.bias.add_(1e-3)
            content = made(agent)
            agent.policy.actor.last.bias.sub_(1e-3)
        return content

    monkeypatch.setattr(folder, "to_onnx", spoiled)
    with pytest.raises(CheckpointError, match=r"policy.onnx: action differs from the agent's by .*allowed: 1e-05"):
        export_run(path, tmp_path / "out", "onnx", episodes=0)
    assert [p.name for p in tmp_path.iterdir()] == ["agent.pt"]


class Branching(my_nets.Plain):
    """Looks at a number to choose what it computes, which no graph can."""

    def forward(self, obs):
        out, value = super().forward(obs)
        return (out, value) if float(obs.mean()) > 1e9 else (out * 1.0, value)


def test_a_network_that_no_graph_can_hold_is_refused_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(my_nets, "Branching", Branching, raising=False)
    path = saved(tmp_path, policy__module="my_nets:Branching")
    with pytest.raises(ConfigError, match=r"--format onnx: PyTorch cannot make a graph .*; use --format safetensors"):
        export_run(path, tmp_path / "out", episodes=0)
    assert [p.name for p in tmp_path.iterdir()] == ["agent.pt"]
    assert export_run(path, tmp_path / "out", "safetensors", episodes=0).files


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run of the command line and its export in both formats."""
    runs = tmp_path_factory.mktemp("runs")
    short = ["--total-steps", "2048", "--training.num-epochs", "1", "--runs-dir", str(runs), "--quiet"]
    assert main(["train", *short]) == 0
    run = runs / "CartPole-v1/kl_adaptive/seed0"
    assert main(["export", str(run), "--episodes", "3"]) == 0
    return run / "export"


def test_the_card_says_what_was_trained_and_measured(exported):
    text = (exported / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "ppo_kl"
    assert {"reinforcement-learning", "CartPole-v1"} <= set(front["tags"])
    played = Agent.load(exported.parent).evaluate(3)
    assert f"{played.mean:.2f} ± {played.std:.2f} (mean ± SD of 3 episodes, most likely (deterministic)" in text
    rows = [json.loads(line) for line in (exported.parent / "metrics.jsonl").read_text().splitlines()]
    kl = np.median([row["kl/forward"] for row in rows])
    assert f"| {kl:.4g} nats (median of {len(rows)} iterations" in text
    assert "kind: forward_kl" in text
    assert "| 2,048 |" in text
    assert "| input | `obs` | float | [batch, 4] |" in text


def test_the_code_on_the_card_and_on_the_page_plays_the_same_episode(exported):
    page = Path(__file__).parents[1] / "docs" / "export.md"
    codes = [re.findall(r"```python\n(.*?)```", x.read_text(), re.DOTALL) for x in (exported / "README.md", page)]
    assert [len(found) for found in codes] == [1, 1]
    command = [sys.executable, "-W", "error", "-c"]
    card, graph = (subprocess.run([*command, code], cwd=exported, capture_output=True, text=True) for (code,) in codes)
    assert re.fullmatch(r"return \d+\.0\n", card.stdout), card.stderr
    assert graph.stdout == card.stdout, graph.stderr


def test_the_folder_names_no_folder_of_this_machine(exported):
    for path in exported.iterdir():
        assert str(exported.parents[3]).encode() not in path.read_bytes(), path.name


def test_an_earlier_export_is_replaced_and_anything_else_is_not(exported, tmp_path, capsys):
    run, out = str(exported.parent), tmp_path / "out"
    quick = ["--to", str(out), "--episodes", "0", "--format"]
    assert main(["export", run, *quick, "safetensors"]) == 0
    assert main(["export", run, *quick, "safetensors"]) == 0
    (out / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert main(["export", run, *quick, "safetensors"]) == 2
    assert "holds notes.txt, which no export wrote" in capsys.readouterr().err
    assert main(["export", run, *quick, "onnx", "--force"]) == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "policy.safetensors").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("a page of somebody's")
    with pytest.raises(ConfigError, match=r"holds README\.md"):
        export_run(run, other)
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        export_run(run, other / "README.md")
    assert (other / "README.md").read_text() == "a page of somebody's"


def test_a_folder_that_cannot_be_written_is_said(exported, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written: .*; name another folder by --to"):
        export_run(exported.parent, tmp_path / "file" / "out", "safetensors", episodes=0)


@pytest.mark.parametrize(("package", "format"), [("safetensors", "safetensors"), ("onnxscript", "onnx")])
def test_a_missing_extra_is_named_before_anything_is_played(exported, tmp_path, monkeypatch, package, format):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf'--format {format} needs .* pip install "ppo-kl\[export\]"'):
        export_run(exported.parent, tmp_path / "out", format)
    assert not list(tmp_path.iterdir())


# --- what comes from others -------------------------------------------------------------------------------------------


def spoil_config(out):
    text = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(
        text.replace("hidden_sizes: [64, 64]", "hidden_sizes: [32]").replace("- 64", "- 32")
    )


SPOILED = {
    "no weights": (lambda out: (out / "policy.safetensors").unlink(), "no policy.safetensors here"),
    "no config": (lambda out: (out / "config.yaml").unlink(), "no config.yaml here"),
    "torn weights": (lambda out: (out / "policy.safetensors").write_bytes(b"\x00" * 99), "damaged, or not an export"),
    "torn spaces": (lambda out: (out / "spaces.json").write_text('{"obs": 3'), "damaged, or not an export"),
    "strange spaces": (lambda out: (out / "spaces.json").write_text("[]"), "damaged, or not an export"),
    "other networks": (spoil_config, "does not fit this agent"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_damaged_export_is_refused_with_its_folder(exported, tmp_path, what):
    out = tmp_path / "out"
    out.mkdir()
    for path in exported.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    assert load(out).steps == 2048
    spoil, reason = SPOILED[what]
    spoil(out)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(out))}: .*{reason}"):
        load(out)


def test_a_module_that_an_export_names_is_not_imported(tmp_path):
    path = saved(tmp_path, policy__module="my_nets:Plain")
    done = export_run(path, tmp_path / "out", "safetensors", episodes=0)
    assert "import my_nets" in (done.folder / "README.md").read_text()
    text = (done.folder / "config.yaml").read_text()
    (done.folder / "config.yaml").write_text(text.replace("my_nets:Plain", "this:Plain"))
    with pytest.raises(ConfigError, match="is not imported"):
        load(done.folder)
    assert "this" not in sys.modules
