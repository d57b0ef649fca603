"""scripts/single_file_ppo.py: short, light, on both kinds of actions, and what it logs is what moves λ."""

import ast
import math
import sys

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


@pytest.mark.parametrize("env", ["FrozenLake-v1"])
def test_a_task_that_it_cannot_do_is_refused_by_name(env, run):
    with pytest.raises(SystemExit, match=r"FrozenLake-v1.*takes vectors"):
        run("--env", env)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "steps", "better_than"), [("CartPole-v1", 100_000, 200), ("Pendulum-v1", 100_000, -500)]
)
def test_it_learns(env, steps, better_than, run):
    _, mean = run("--env", env, "--total-steps", str(steps))
    assert mean > better_than
