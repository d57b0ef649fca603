"""On a CUDA GPU: the numbers of the CPU, compiled or not, and nothing read per minibatch. What needs none is in
test_devices.py."""

import dataclasses
import json
import warnings

import pytest
import torch
from every_family import EVERY_FAMILY
from learner_parts import FAMILIES, batch_of, make, path_of, same_numbers
from short_runs import config

from ppo_kl.cli import main
from ppo_kl.config.presets import PRESETS
from ppo_kl.config.training import KLStop
from ppo_kl.diagnostics.measure import measure
from ppo_kl.errors import EngineWarning
from ppo_kl.objectives import Objective, policy_kl
from ppo_kl.training.agent import Agent
from ppo_kl.training.engine import REPLAY_WARM_UPS
from ppo_kl.training.trainer import resume, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

ITERATIONS = 5
SETTINGS = {
    "all of the loss": {"clip_grad": "apart", "advantage_norm": "minibatch", "value_clip": 0.2, "ent_coef": 0.01},
    "stops as sb3, adaptive lr": {"lr_schedule": "kl_adaptive", "kl_stop": KLStop("before_step", "k3", threshold=0.01)},
    "stops after an epoch": {"kl_stop": KLStop("after_epoch", "k1", threshold=0.01)},
    "the actor stops": {"max_grad_norm": None, "kl_stop": KLStop("last_minibatch", threshold=0.01, stops="actor")},
}


@pytest.fixture
def no_host_reads():
    """PyTorch raises wherever the host waits for the GPU."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("warn")
        torch.cuda.set_sync_debug_mode("default")
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


def require_same_path(first, second, tolerance: float) -> None:
    for _ in range(ITERATIONS):
        same_numbers(path_of(first), path_of(second), tolerance)


# --- the CPU's numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", PRESETS)
def test_every_objective_learns_what_it_learns_on_the_cpu(objective):
    def on(device):
        return make(objective=Objective(PRESETS[objective], num_action_dims=2), minibatch_size=4, device=device)

    require_same_path(on("cpu"), on("cuda"), 2e-3)


@pytest.mark.parametrize("family", EVERY_FAMILY.values(), ids=EVERY_FAMILY)
def test_every_family_learns_what_it_learns_on_the_cpu(family):
    cpu, gpu = (make(family, "kl_adaptive", minibatch_size=4, ent_coef=0.01, device=d) for d in ("cpu", "cuda"))
    require_same_path(cpu, gpu, 2e-3)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_of_an_update_means_what_it_means_on_the_cpu(settings):
    cpu, gpu = (make(objective="kl_adaptive", minibatch_size=4, device=d, **settings) for d in ("cpu", "cuda"))
    require_same_path(cpu, gpu, 2e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3.0])
@pytest.mark.parametrize("family", EVERY_FAMILY.values(), ids=EVERY_FAMILY)
def test_the_exact_kl_is_the_cpu_s_near_and_far(family, scale):
    old, new = scale * torch.randn(2, 500, family.num_params, generator=torch.Generator().manual_seed(0))
    for direction in ("forward", "reverse"):
        expected = policy_kl(family.build(old), family.build(new), direction)
        kl = policy_kl(family.build(old.cuda()), family.build(new.cuda()), direction)
        # Of policies 1e-3 apart the KL is 1e-6 of its own terms: what float32 leaves of them.
        torch.testing.assert_close(kl.cpu(), expected, rtol=1e-3, atol=2e-6)


# --- one graph --------------------------------------------------------------------------------------------------------

HOWS = {
    "replayed": lambda learner: learner.replay(),
    "compiled": lambda learner: learner.compile(),
    "compiled and replayed": lambda learner: (learner.replay(), learner.compile()),
}


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
@pytest.mark.parametrize("objective", ["clip", "kl_adaptive"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_step_as_a_graph_is_the_eager_one(family, objective, how):
    eager, graph = (make(family, objective, minibatch_size=4, ent_coef=0.01, device="cuda") for _ in range(2))
    how(graph)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        require_same_path(eager, graph, 2e-3)


@pytest.mark.parametrize("family", EVERY_FAMILY.values(), ids=EVERY_FAMILY)
def test_steps_of_every_family_can_be_replayed(family):
    eager, graph = (make(family, "kl_adaptive", minibatch_size=4, device="cuda") for _ in range(2))
    graph.replay()
    require_same_path(eager, graph, 2e-3)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_steps_of_every_setting_can_be_replayed(settings):
    eager, graph = (make(objective="kl_adaptive", minibatch_size=4, device="cuda", **settings) for _ in range(2))
    graph.replay()
    require_same_path(eager, graph, 2e-3)


# --- no waiting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [lambda learner: None, *HOWS.values()], ids=["eager", *HOWS])
@pytest.mark.parametrize("settings", [{}, *SETTINGS.values()], ids=["default", *SETTINGS])
def test_the_host_does_not_wait_in_a_gradient_step(settings, how, no_host_reads):
    learner = make(objective="kl_adaptive", device="cuda", **settings)
    how(learner)
    minibatch = batch_of(learner)
    step = learner._step_for(minibatch)
    for _ in range(REPLAY_WARM_UPS + 1):  # compiles, captures, opens cuBLAS
        step(minibatch)
    no_host_reads("error")
    step(minibatch)
    with pytest.raises(RuntimeError, match="synchroniz"):
        minibatch.adv.sum().item()


@pytest.mark.parametrize("family", EVERY_FAMILY.values(), ids=EVERY_FAMILY)
def test_the_host_does_not_wait_in_a_step_a_measurement_or_a_controller_of_any_family(family, no_host_reads):
    learner = make(family, "kl_adaptive", device="cuda", ent_coef=0.01)
    batch = batch_of(learner)
    learner.step(batch)
    no_host_reads("error")
    learner.step(batch)
    said = measure(learner.policy, learner.family, learner.objective, batch)
    learner.objective.adapt_(said["kl/controlled"])


def test_the_waits_of_an_update_do_not_grow_with_its_minibatches(no_host_reads):
    def waits(minibatch_size: int) -> int:
        learner = make(objective="kl_adaptive", device="cuda", minibatch_size=minibatch_size, num_epochs=2)
        batch = batch_of(learner, 64)
        learner.update(batch, 0.0)
        no_host_reads("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            learner.update(batch, 0.0)
        torch.cuda.set_sync_debug_mode("default")
        return len([w for w in caught if "synchroniz" in str(w.message)])

    assert waits(4) == waits(64)


# --- whole runs -------------------------------------------------------------------------------------------------------

RUNS = {
    "discrete": ("CartPole-v1", {}),
    "continuous": ("Pendulum-v1", {}),
    "memory": ("CartPole-v1", {"policy.memory": "gru", "policy.memory_size": 8}),
    "workers": ("CartPole-v1", {"env.vectorization": "async"}),
    "compiled": ("Pendulum-v1", {"runtime.compile": "on"}),
    "kernel by kernel": ("Pendulum-v1", {"runtime.cuda_graphs": False}),
}


def first_row(folder, env: str, changes) -> dict[str, float]:
    done = train(config(folder, env, iterations=2, **changes), quiet=True)
    return json.loads((done.folder / "metrics.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize(("env", "changes"), RUNS.values(), ids=RUNS)
def test_a_run_is_the_cpu_s_to_rounding(env, changes, tmp_path):
    cpu = first_row(tmp_path / "cpu", env, {**changes, "runtime.device": "cpu", "runtime.compile": "off"})
    gpu = first_row(tmp_path / "gpu", env, {"runtime.compile": "off", **changes, "runtime.device": "cuda"})
    for tag in ("kl/forward", "loss/policy", "loss/value", "loss/entropy", "optim/grad_norm"):
        assert gpu[tag] == pytest.approx(cpu[tag], rel=5e-3, abs=1e-6), tag


def test_a_run_that_was_stopped_goes_on_and_its_agent_acts_on_the_cpu(tmp_path):
    run = config(tmp_path, iterations=4, **{"runtime.device": "cuda"})
    folder = train(dataclasses.replace(run, total_steps=run.total_steps // 2), quiet=True).folder
    resume(folder, total_steps=run.total_steps, quiet=True)
    whole = train(dataclasses.replace(run, runs_dir=str(tmp_path / "whole")), quiet=True).folder
    ends = [json.loads((f / "metrics.jsonl").read_text().splitlines()[-1]) for f in (folder, whole)]
    for tag in ("kl/forward", "loss/policy", "loss/value"):
        assert ends[0][tag] == pytest.approx(ends[1][tag], rel=5e-3, abs=1e-6), tag
    gpu, cpu = Agent.load(folder), Agent.load(folder, device="cpu")
    obs = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)).numpy()
    assert (gpu.act(obs) == cpu.act(obs)).all()


def test_the_command_line_trains_and_evaluates_on_a_gpu(tmp_path, capsys):
    options = ["--total-steps", "256", "--training.num-steps", "64", "--runs-dir", str(tmp_path)]
    assert main(["train", "--env", "cartpole", "--objective", "kl_adaptive", "--runtime", "cuda", *options]) == 0
    (metadata,) = tmp_path.rglob("metadata.json")
    assert torch.cuda.get_device_name() in metadata.read_text()
    assert main(["evaluate", str(metadata.parent), "--episodes", "2"]) == 0
    assert "return" in capsys.readouterr().out
