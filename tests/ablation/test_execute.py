"""Runs of a plan: what is missing is run, results are kept at once, and are the same however they came about."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import killing_envs
import pytest
from tiny_studies import TINY, numbers_in, tiny
from waiting import eventually, gone

from ppo_kl.ablation.execute import EXECUTORS, Options, jobs_of, missing
from ppo_kl.ablation.plan import plan
from ppo_kl.ablation.result import read
from ppo_kl.ablation.run import RESULTS, Job, run
from ppo_kl.cli import main
from ppo_kl.training.trainer import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def results_in(folder):
    return {result["id"]: numbers_in(result) for result in read(folder / RESULTS)}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The tiny study, run here one run after the other."""
    folder = tmp_path_factory.mktemp("reference")
    planned = plan(tiny())
    for job in jobs_of(planned.points, planned, folder):
        run(job)
    return folder


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_result_has_what_a_report_needs(reference):
    for result in read(reference / RESULTS):
        assert result["steps"] == 512
        assert len(result["initial"]) == 50  # a hundred over two seeds
        assert len(result["evaluated"]) == 10
        assert {len(values) for values in result["curve"].values()} == {50}
        assert result["kl"]["median"] > 0
        assert (result["kl"]["target"] is not None) == (result["arm"] == "kl_adaptive")
        assert result["settings"]["total_steps"] == 512
        assert result["versions"]["torch"]
    assert len(read(reference / RESULTS)) == 4


def test_the_initial_policy_is_not_the_trained_one(reference):
    # The same for every objective, which has no part in it: CartPole at random.
    by_seed = {}
    for result in read(reference / RESULTS):
        by_seed.setdefault(result["seed"], []).append(result["initial"])
        assert sum(result["initial"]) / 50 == pytest.approx(22, abs=4)
    assert all(clip == kl for clip, kl in by_seed.values())
    assert by_seed[0] != by_seed[1]


class EndsAfterTwo:
    def on_iteration(self, state):
        return state.number < 2


def test_a_run_that_was_killed_goes_on_from_its_checkpoint_to_the_same_result(reference, tmp_path):
    planned = plan(tiny())
    job = jobs_of(planned.points[:1], planned, tmp_path)[0]
    train(job.point.config, folder=job.run_folder, callbacks=[EndsAfterTwo()], quiet=True)
    (job.run_folder / "result.json").unlink()
    assert numbers_in(run(job)) == results_in(reference)[job.point.id]


def test_one_that_was_killed_before_it_had_a_checkpoint_begins_again(reference, tmp_path):
    planned = plan(tiny())
    job = jobs_of(planned.points[:1], planned, tmp_path)[0]
    (job.run_folder / "checkpoints").mkdir(parents=True)
    (job.run_folder / "metrics.jsonl").write_text("torn")
    assert numbers_in(run(job)) == results_in(reference)[job.point.id]


def test_a_run_that_fails_is_tried_twice_and_then_told_with_its_error(tmp_path):
    planned = plan(tiny(objectives=("clip",), seeds=1, envs=("killing_envs:Fails",)))
    (job,) = jobs_of(planned.points, planned, tmp_path)
    result = run(job)
    assert "EnvWorkerError" in result["error"]
    assert json.loads(job.result_file.read_text()) == result
    assert missing(planned, [tmp_path / RESULTS]) == [job.point]


# --- what is missing --------------------------------------------------------------------------------------------------


def test_what_any_folder_has_is_not_run_once_more(reference, tmp_path):
    planned = plan(tiny())
    assert missing(planned, [tmp_path, reference / RESULTS]) == []
    more = plan(tiny(seeds=3))
    assert [point.seed for point in missing(more, [reference / RESULTS])] == [2, 2]


def test_the_report_does_not_mind_how_a_result_is_called(reference, tmp_path):
    for path in (reference / RESULTS).glob("*.json"):
        (tmp_path / f"{path.stat().st_ino}.json").write_text(path.read_text())
    assert missing(plan(tiny()), [tmp_path]) == []


# --- executors --------------------------------------------------------------------------------------------------------

OPTIONS = {"local": Options(parallel=2), "ray": Options(parallel=2), "slurm": Options(slurm=(("cluster", "local"),))}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_executor_gives_the_same_results(executor, reference, tmp_path):
    planned = plan(tiny())
    jobs = jobs_of(planned.points, planned, tmp_path)
    done = {job.point.id: numbers_in(result) for job, result in EXECUTORS[executor](jobs, OPTIONS[executor])}
    assert done == results_in(reference)


def test_a_process_that_dies_is_tried_once_more_and_the_others_go_on(tmp_path):
    planned = plan(tiny(objectives=("clip",), seeds=2, envs=("killing_envs:Kills", "cartpole")))
    jobs = jobs_of(planned.points, planned, tmp_path)
    done = {(job.point.env, job.point.seed): r for job, r in EXECUTORS["local"](jobs, Options(parallel=2))}
    for seed in (0, 1):
        assert "died twice" in done["killing_envs:Kills", seed]["error"]
        assert done["cartpole", seed]["steps"] == 512


def test_what_a_run_prints_is_in_a_file_of_its_own(tmp_path, capfd):
    planned = plan(tiny(objectives=("clip",), seeds=2, envs=("killing_envs:Prints",)))
    jobs = jobs_of(planned.points, planned, tmp_path)
    assert all("error" not in result for _, result in EXECUTORS["local"](jobs, Options(parallel=1)))
    assert "words" not in "".join(capfd.readouterr())
    assert [job.log_file.read_text().count("words") > 0 for job in jobs] == [True, True]


# --- the command ------------------------------------------------------------------------------------------------------


def command(folder, *more):
    settings = [f"--set={key}={value}" for key, value in TINY.items()]
    study = ["--objective", "clip,kl_adaptive", "--env", "cartpole", "--seeds", "2", "--name", "tiny", *settings]
    return [sys.executable, "-m", "ppo_kl", "ablate", *study, "--folder", str(folder), *more]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_half_way_and_run_again_it_gives_the_same_results(number, reference, tmp_path):
    killed = subprocess.Popen(command(tmp_path), start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert eventually(lambda: any((tmp_path / "runs").rglob("metrics.jsonl")), 120)
    os.kill(killed.pid, number)
    killed.communicate(timeout=60)
    assert killed.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert len(results_in(tmp_path)) < 4
    again = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert results_in(tmp_path) == results_in(reference)
    assert "4 of 4 runs are finished" in again.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_waits_is_not_begun_once_it_is_told_to_stop(number, tmp_path):
    settings = ["--set=total_steps=2000000", *(f"--set={key}={x}" for key, x in TINY.items() if key != "total_steps")]
    study = [
        sys.executable,
        "-m",
        "ppo_kl",
        "ablate",
        "--objective",
        "clip",
        "--seeds",
        "6",
        "--parallel",
        "1",
        *settings,
    ]
    told = subprocess.Popen(
        [*study, "--folder", str(tmp_path)], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert eventually(lambda: any((tmp_path / "runs").rglob("metrics.jsonl")), 120)
    os.kill(told.pid, number)
    out, _ = told.communicate(timeout=60)
    assert told.returncode == 128 + number
    assert "0 of 6 runs are finished; the same command runs the 6 that are missing" in out
    runs = sorted((tmp_path / "runs").rglob("metadata.json"))
    assert len(runs) == 1
    assert json.loads(runs[0].read_text())["exit_status"] == 143  # saved
    assert list(runs[0].parent.glob("checkpoints/*.pt"))


def test_told_a_second_time_it_ends_also_where_a_run_does_not_answer(tmp_path, monkeypatch):
    deaf = tmp_path / "deaf"
    monkeypatch.setenv("DEAF", str(deaf))
    monkeypatch.setenv("PYTHONPATH", str(Path(killing_envs.__file__).parent), prepend=os.pathsep)
    study = ["--objective", "clip", "--env", "killing_envs:Deaf", "--seeds", "1", "--set", "total_steps=100000000"]
    told = subprocess.Popen(
        [sys.executable, "-m", "ppo_kl", "ablate", *study, "--folder", str(tmp_path / "study")], start_new_session=True
    )
    assert eventually(lambda: deaf.exists() and deaf.read_text(), 120)
    worker = int(deaf.read_text())
    os.kill(told.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):  # it waits for the run to save itself
        told.wait(timeout=3)
    os.kill(told.pid, signal.SIGINT)
    assert told.wait(timeout=30) == 128 + signal.SIGINT
    if not (ended := eventually(lambda: gone(worker), 30)):
        os.kill(worker, signal.SIGKILL)
    assert ended


def test_some_of_the_arms_can_be_run_first(tmp_path):
    done = subprocess.run(command(tmp_path, "--arms", "clip"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 of 4 runs are finished\n" in done.stdout
    assert {result["arm"] for result in read(tmp_path / RESULTS)} == {"clip"}


def test_known_results_are_taken_over(reference, tmp_path):
    done = subprocess.run(command(tmp_path, "--known", str(reference)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs are finished" in done.stdout
    assert results_in(tmp_path) == results_in(reference)
    assert not (tmp_path / "runs").exists()


def test_a_result_of_another_default_is_no_result_of_the_run(reference, tmp_path):
    for path in (reference / RESULTS).glob("*.json"):
        result = json.loads(path.read_text())
        result["settings"]["training.gamma"] = 0.5
        (tmp_path / path.name).write_text(json.dumps(result))
    assert len(missing(plan(tiny()), [tmp_path])) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--parallel", "0"], "--parallel=0: allowed: >= 1"),
        (["--known", "nowhere"], "--known nowhere: there are no results in it"),
        (["--set", "seed=1,2"], "--set seed=1,2: seeds are counted by --seeds"),
        (["--executor", "slurm"], "there is no sbatch here"),
        (["--executor", "slurm", "--slurm", "cluster=nope"], "--slurm: "),
        (["--set", "training.gamma"], "expected KEY=VALUE"),
        (["--arms", "clop"], "--arms: 'clop' is no arm of this study (did you mean 'clip'?)"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert main(["ablate", "--objective", "clip", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_job_says_where_its_files_lie(tmp_path):
    planned = plan(tiny())
    job = Job(planned.points[0], tmp_path, 1)
    assert job.run_folder.relative_to(tmp_path).parts[:3] == ("runs", "cartpole", "clip")
    assert job.result_file.name == f"cartpole.clip.seed0.{job.point.id}.json"
