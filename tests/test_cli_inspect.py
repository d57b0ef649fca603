"""`ppo-kl inspect` as a person meets it, on runs that were trained."""

import subprocess
import sys

import pytest
from command_line import run

from ppo_kl.load import load_config
from ppo_kl.training.trainer import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A clip and a KL run of four updates."""
    folder = tmp_path_factory.mktemp("inspected")
    for objective in ("clip", "kl_adaptive"):
        changes = {"total_steps": 1024, "runs_dir": str(folder), "training.num_epochs": 1}
        train(load_config(objective=objective, overrides=changes), quiet=True)
    return folder / "CartPole-v1"


def test_a_run_is_told(capsys, runs):
    status, out, err = run(capsys, "inspect", runs / "kl_adaptive/seed0")
    assert (status, err) == (0, "")
    assert out.startswith("CartPole-v1 · kl_adaptive · seed 0\nfinished, 1,024 steps in 4 updates\n")
    assert "╌ target band" in out
    assert "tracking" in out


def test_event_files_alone_tell_the_same(capsys, runs, tmp_path):
    _, told, _ = run(capsys, "inspect", runs / "kl_adaptive/seed0")
    alone = tmp_path / "CartPole-v1/kl_adaptive/seed0"
    alone.mkdir(parents=True)
    for path in (runs / "kl_adaptive/seed0").iterdir():
        if path.is_file() and path.name != "metrics.jsonl":
            (alone / path.name).write_bytes(path.read_bytes())
    status, again, _ = run(capsys, "inspect", alone)
    assert status == 0
    assert again.splitlines()[3:] == told.splitlines()[3:]  # all but the folder's name


def test_several_runs_are_compared_and_drawn_and_none_is_counted_twice(capsys, runs, tmp_path):
    picture = tmp_path / "both.png"
    status, out, err = run(capsys, "inspect", runs, runs / "clip/seed0", "--png", picture)
    assert (status, err) == (0, "")
    assert out.startswith("CartPole-v1: 2 runs\n")
    assert out.endswith(f"Drawn: {picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_run_without_an_iteration_is_named_and_the_others_are_told(capsys, runs, tmp_path):
    for name in ("CartPole-v1/clip/seed0", "CartPole-v1/clip/seed0-2"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file in ("metrics.jsonl", "config.yaml"):
            (folder / file).write_bytes((runs / "clip/seed0" / file).read_bytes())
    empty = tmp_path / "CartPole-v1/clip/seed1"
    empty.mkdir()
    (empty / "metrics.jsonl").touch()
    status, out, _ = run(capsys, "inspect", tmp_path)
    assert status == 0
    assert out.endswith(f"No iteration yet in {empty}\n")
    assert "clip seed 0-2: " in out  # not the same name twice
    assert run(capsys, "inspect", empty)[0] == 2


def test_a_run_is_drawn(capsys, runs, tmp_path):
    picture = tmp_path / "kl_story.png"
    assert run(capsys, "inspect", runs / "clip/seed0", "--png", picture)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nowhere"], ["nowhere: no such folder", "runs/ENV/OBJECTIVE/seed0"]),
        (["."], ["neither metrics.jsonl nor an event file"]),
        ([], ["no RUN given", "runs/ENV/OBJECTIVE/seed0"]),
    ],
)
def test_a_wrong_command_is_refused_with_what_to_do(capsys, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "inspect", *arguments)
    assert status == 2
    for part in parts:
        assert part in err


def test_without_matplotlib_it_says_what_to_install(capsys, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "ppo_kl.diagnostics.plot", None)
    status, _, err = run(capsys, "inspect", runs, "--png", "x.png")
    assert status == 2
    assert '--png: needs what the extra [report] installs: pip install "ppo-kl[report]"' in err


def test_it_needs_neither_torch_nor_a_plot_library_to_tell(runs):
    code = (
        "import sys; from ppo_kl.cli import main\n"
        f"assert main(['inspect', {str(runs)!r}]) == 0\n"
        "print(sorted({'torch', 'matplotlib', 'gymnasium', 'tensorboard'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
