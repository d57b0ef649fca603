"""No file that we read runs code, fills the memory or leads out of its folder; no file that we write says too much."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import pickle
import re
import socket
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forged import forge

from ppo_kl import checkpoint
from ppo_kl.cli import main
from ppo_kl.config import TrainConfig
from ppo_kl.errors import CheckpointError, ConfigError, PPOKLError
from ppo_kl.load import from_yaml, load_config
from ppo_kl.training import run_folder
from ppo_kl.training.trainer import resume, train

ROOT = Path(__file__).parents[1]
STEPS = 64  # of an iteration


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def config(runs: Path, **changes: Any) -> TrainConfig:
    settings = {"runs_dir": str(runs), "total_steps": 2 * STEPS, "env.num_envs": 2, "training.num_steps": STEPS // 2}
    settings |= {
        "training.num_epochs": 1,
        "training.minibatch_size": STEPS,
        "runtime.device": "cpu",
        "runtime.workers": 0,
    }
    return load_config(overrides=settings | changes)


class After:
    """A callback that ends the training after its first iteration."""

    def on_iteration(self, state: Any) -> bool:
        return False


@pytest.fixture
def stopped(tmp_path) -> Path:
    """The folder of a run that was stopped, so that it can be gone on with."""
    folder = train(config(tmp_path / "runs"), callbacks=[After()], quiet=True).folder
    (folder / "result.json").unlink()
    return folder


# --- no file runs code -----------------------------------------------------------------------------------------------


def plain_pickle(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload, protocol=2))


def sealed_pickle(path: Path, payload: Payload) -> None:
    forge(path, pickle.dumps(payload, protocol=2))


def sealed_torch(path: Path, payload: Payload) -> None:
    forge(path, {"format": checkpoint.FORMAT_VERSION, "learner": {"policy": {}}, "extra": payload})


def sealed_old_torch(path: Path, payload: Payload) -> None:
    buffer = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT_VERSION, "extra": payload}, buffer, _use_new_zipfile_serialization=False)
    forge(path, buffer.getvalue())


@pytest.mark.parametrize("write", [plain_pickle, sealed_pickle, sealed_torch, sealed_old_torch])
def test_code_in_a_checkpoint_is_not_run(tmp_path, write):
    write(tmp_path / "agent.pt", Payload(tmp_path / "executed"))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "agent.pt")
    assert not (tmp_path / "executed").exists()


def test_the_payload_of_these_tests_would_run_where_pickle_is_trusted(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["metadata.json", "result.json"])
def test_a_pickle_in_a_file_that_is_read_when_a_run_goes_on_is_refused_and_not_run(stopped, tmp_path, name):
    plain_pickle(stopped / name, Payload(tmp_path / "executed"))
    checkpoints = [path.read_bytes() for path in (stopped / "checkpoints").iterdir()]
    with pytest.raises(PPOKLError, match=name):
        resume(stopped, quiet=True)
    assert not (tmp_path / "executed").exists()
    assert [path.read_bytes() for path in (stopped / "checkpoints").iterdir()] == checkpoints


def test_a_pickle_in_a_configuration_is_refused_and_not_run(tmp_path):
    plain_pickle(tmp_path / "config.yaml", Payload(tmp_path / "executed"))
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read"):
        load_config(config=str(tmp_path / "config.yaml"))
    assert not (tmp_path / "executed").exists()


def test_lines_of_the_metrics_that_are_a_pickle_are_left_out_and_not_run(stopped, tmp_path):
    with (stopped / "metrics.jsonl").open("ab") as file:
        file.write(pickle.dumps(Payload(tmp_path / "executed")) + b"\n")
    assert resume(stopped, quiet=True).exit_status == 0
    assert not (tmp_path / "executed").exists()
    rows = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert [row["steps"] for row in rows] == [STEPS, 2 * STEPS]


def test_a_yaml_tag_on_the_command_line_is_refused_and_not_run(tmp_path, capsys):
    marker = tmp_path / "executed"
    for tag in ("!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir"):
        (tmp_path / "bad.yaml").write_text(f"seed: {tag} ['{marker}']\n")
        assert main(["train", "--config", str(tmp_path / "bad.yaml"), "--runs-dir", str(tmp_path / "runs")]) == 2
        assert "bad.yaml:1:" in capsys.readouterr().err
    assert not marker.exists()
    assert not (tmp_path / "runs").exists()


FORBIDDEN = (
    r"\b(import|from) (pickle|cloudpickle|marshal|shelve|dill|joblib)\b",
    r"\b(pickle|cloudpickle|marshal|shelve|dill|joblib)\.\w",
    r"weights_only ?= ?False",
    r"yaml\.(load|load_all|full_load|unsafe_load|unsafe_load_all)\(",
    r"(?<![.\w])(eval|exec)\(",
    r"\bos\.(system|popen)\b",
    r"shell ?= ?True",
    r"torch\.load\((?!.*weights_only=True)",
    r"allow_pickle ?= ?True",
)
ALLOWED = {("scripts/generate.py", "exec(")}
"""The page that it makes holds what our own script printed when it was run."""


def test_nothing_that_runs_code_from_files_is_used_in_the_package_or_the_scripts():
    files = [*ROOT.glob("ppo_kl/**/*.py"), *ROOT.glob("scripts/**/*.py"), *ROOT.glob("scripts/*.sh")]
    assert len(files) > 80
    found = set()
    for path in files:
        text = path.read_text(encoding="utf-8")
        found |= {(str(path.relative_to(ROOT)), m.group()) for word in FORBIDDEN for m in re.finditer(word, text)}
    assert found == ALLOWED


# --- no file fills the memory ----------------------------------------------------------------------------------------


def with_member(name: str, change: Callable[[bytes], bytes], **compression: int) -> bytes:
    """A checkpoint's archive in which one member is another."""
    buffer, made = io.BytesIO(), io.BytesIO()
    state = {"learner": {"policy": {"w": torch.arange(8.0)}}}
    torch.save({"format": checkpoint.FORMAT_VERSION, **state}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(made, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename.endswith(name):
                new.writestr(member.filename, change(content), **compression)
            else:
                new.writestr(member, content)
    return made.getvalue()


def number(n: int) -> bytes:
    """`n` as a pickle says it."""
    return pickle.dumps(n, protocol=2)[2:-1]


def huge_tensor(pickled: bytes) -> bytes:
    """The pickle of `arange(8.0)` that says it has 10¹² elements, of which there is one, again and again."""
    head, cpu, tail = pickled.partition(b"cpu")
    at = tail.index(number(8)[:2] + b"\x85")  # the shape, a tuple of one
    stride = tail.index(number(1)[:2] + b"\x85", at)
    tail = tail[:at] + number(10**12) + tail[at + 2 : stride] + number(0) + tail[stride + 2 :]
    return head + cpu + tail


def huge_storage(pickled: bytes) -> bytes:
    """The same, but it is the memory behind it that is said to be so large."""
    head, cpu, tail = pickled.partition(b"cpu")
    return head + cpu + tail.replace(number(8)[:2] + b"t", number(10**12) + b"t", 1)


LOAD = """
import re, sys
import torch
from pathlib import Path
from ppo_kl import checkpoint
from ppo_kl.errors import CheckpointError

def resident():  # at most, in kB; getrusage's would be that of the process that started this one
    return re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]

before = int(resident())
for path in sys.argv[1:]:
    try:
        checkpoint.load(Path(path))
    except CheckpointError as error:
        print(error)
after = int(resident())
print(after // 1024, (after - before) // 1024)
"""


def test_files_that_claim_to_be_huge_are_refused_before_memory_is_used(tmp_path):
    deflated = {"compress_type": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    bomb = with_member("data/0", lambda _: bytes(1 << 28), **deflated)
    assert len(bomb) < 4e6
    contents = {
        "bomb.pt": bomb,
        "tensor.pt": with_member("data.pkl", huge_tensor),
        "storage.pt": with_member("data.pkl", huge_storage),
    }
    for name, content in contents.items():
        forge(tmp_path / name, content)
    with (tmp_path / "sparse.pt").open("wb") as file:  # a length in the header that is not the file's
        file.write(checkpoint.sealed(b"")[:-32])
        file.truncate(1 << 40)
    words = [sys.executable, "-c", LOAD, *(str(tmp_path / name) for name in (*contents, "sparse.pt"))]
    *complaints, memory = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = ["is compressed", "not as many values", "not a checkpoint", "file damaged"]
    for complaint, part in zip(complaints, expected, strict=True):
        assert part in complaint
    total, grown = (int(n) for n in memory.split())
    assert total < 500
    assert grown < 100


def test_the_bombs_of_the_test_above_differ_from_what_is_loaded_only_in_what_they_claim(tmp_path):
    forge(tmp_path / "agent.pt", with_member("data.pkl", lambda content: content))
    assert checkpoint.load(tmp_path / "agent.pt")["learner"]["policy"]["w"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_lists_that_hold_the_next_ones_twice_are_read_without_unfolding_them(tmp_path):
    laughs: list[Any] = [1]
    for _ in range(60):
        laughs = [laughs, laughs]
    forge(tmp_path / "agent.pt", {"format": checkpoint.FORMAT_VERSION, "laughs": laughs})
    assert checkpoint.load(tmp_path / "agent.pt").keys() == {"laughs"}


def test_laughs_in_yaml_a_file_of_100_mb_and_a_deep_one_are_refused(tmp_path):
    names = "abcdefghi"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise(names)]
    for name, text in {"laughs": "\n".join(lines), "deep": "a: " + "[" * 500}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(100_000_000)
    for name, complaint in {"laughs": "anchors", "deep": "deep", "large": "larger than"}.items():
        with pytest.raises(ConfigError, match=rf"{name}\.yaml.*{complaint}"):
            load_config(config=str(tmp_path / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("seed: 1\nseed: 2", "duplicate key 'seed'"),
        ("env:\n  num_envs: 1\n  num_envs: 2", "duplicate key 'num_envs'"),
        ("env: {normalize_obs: no}", "expected true or false, got 'no'"),
        ("env: {normalize_obs: off}", "expected true or false, got 'off'"),
        ("env: {num_envs: 0o17}", "expected int, got '0o17'"),
    ],
)
def test_what_yaml_would_guess_is_refused(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        from_yaml(text, "f.yaml")


@pytest.mark.parametrize(("text", "lr"), [("1e-3", 1e-3), ("1.e-3", 1e-3), ("3E-4", 3e-4), ("0.01", 0.01)])
def test_numbers_that_yaml_takes_for_words_are_numbers(text, lr):
    assert from_yaml(f"training: {{lr: {text}}}", "f.yaml").training.lr == lr


# --- no name leads out -----------------------------------------------------------------------------------------------

NAMES = ["../../up", "/abs", "a/b", "..", "x\ny", "x" * 300, "-lead", "nul\0", "~", "$HOME", "a\\b", "\u202e", "."]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["env", "objective"])
def test_no_environment_or_objective_leads_out_of_the_folder_of_runs(tmp_path, part, name):
    plain = config(tmp_path / "a" / "runs")
    key = "id" if part == "env" else "name"
    changed = dataclasses.replace(plain, **{part: dataclasses.replace(getattr(plain, part), **{key: name})})
    folder = run_folder.create(changed)
    assert folder.resolve().relative_to((tmp_path / "a" / "runs").resolve()).parts == folder.parts[-3:]
    assert all(re.fullmatch(r"[A-Za-z0-9_=][A-Za-z0-9._=-]*", part) for part in folder.parts[-3:])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["runs"]


def test_a_folder_of_runs_with_a_zero_in_its_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"runs_dir=.*null"):
        run_folder.create(dataclasses.replace(TrainConfig(), runs_dir=f"{tmp_path}/nul\0"))
    assert list(tmp_path.iterdir()) == []


# --- no file says too much -------------------------------------------------------------------------------------------


def test_a_run_folder_says_nothing_of_the_home_the_host_or_the_environment_variables(tmp_path, monkeypatch):
    home = tmp_path / "home" / "somebody"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-mine")
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", [f"{home}/bin/ppo-kl", "train", "--config", f"{home}/mine.yaml", f"{home}s"])
    folder = train(config(Path("runs")), quiet=True).folder
    for name in ("config.yaml", "metadata.json", "metrics.jsonl", "result.json"):
        text = (folder / name).read_text()
        assert "a-secret-of-mine" not in text
        assert f"{home}/" not in text
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
    command = json.loads((folder / "metadata.json").read_text())["command"]
    assert command == ["ppo-kl", "train", "--config", "~/mine.yaml", f"{home}s"]


def test_what_a_run_writes_has_the_modes_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        folder = train(config(tmp_path / "runs"), quiet=True).folder
    finally:
        os.umask(before)
    for path in (folder, *folder.rglob("*")):
        expected = 0o750 if path.is_dir() else 0o640
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
