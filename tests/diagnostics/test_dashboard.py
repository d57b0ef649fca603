"""TensorBoard, started on two real runs, serves tags, layout and hyper-parameters of both families."""

import json
import re
import subprocess
import sys
import urllib.request

import pytest

from ppo_kl.config import TrainConfig
from ppo_kl.config.presets import PRESETS
from ppo_kl.diagnostics.dashboard import HPARAM_METRICS, LAYOUT, hparam_summaries
from ppo_kl.diagnostics.glossary import GLOSSARY, metric_of
from ppo_kl.load import load_config
from ppo_kl.training.trainer import train

PROFILE = r"kl/epoch_\d+"


def test_every_tag_on_the_dashboard_is_in_the_glossary():
    charted = {tag.removesuffix("$") for charts in LAYOUT.values() for _, tags in charts.values() for tag in tags}
    assert (charted - {PROFILE}) | set(HPARAM_METRICS) <= set(GLOSSARY)
    assert re.fullmatch(PROFILE, "kl/epoch_10")


def test_every_line_of_the_dashboard_is_one_tag_and_not_a_whole_family():
    # TensorBoard takes these for patterns: kl/forward alone would draw kl/forward_max and kl/forward_p95 too.
    lines = [pattern for charts in LAYOUT.values() for kind, tags in charts.values() for pattern in tags]
    for pattern in {x for x in lines if not x.startswith(PROFILE)}:
        assert len([tag for tag in GLOSSARY if re.match(pattern, tag)]) == 1, pattern


@pytest.mark.parametrize("name", PRESETS)
def test_every_run_writes_the_same_experiment_whatever_its_objective(name):
    reference, _, _ = hparam_summaries(TrainConfig())
    experiment, _, _ = hparam_summaries(TrainConfig(objective=PRESETS[name]))
    assert experiment == reference


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """A function that asks TensorBoard's HTTP interface, over a clip and a KL run."""
    runs = tmp_path_factory.mktemp("runs")
    for objective in ("kl_adaptive", "clip"):
        changes = {"total_steps": 768, "runs_dir": str(runs), "training.num_epochs": 1}
        train(load_config(objective=objective, overrides=changes), quiet=True)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", "0", "--load_fast", "false"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        found = re.search(r"(http://\S+:\d+)/", line)
        if found:
            break
    else:
        pytest.fail("TensorBoard ended without an address")

    def ask(path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{found[1]}/data/plugin/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    yield ask
    server.terminate()
    server.wait(10)
    server.stderr.close()


RUNS = {"CartPole-v1/kl_adaptive/seed0", "CartPole-v1/clip/seed0"}


def test_it_serves_the_scalars_of_both_runs(ask):
    tags = ask("scalars/tags")
    assert set(tags) == RUNS
    for run in RUNS:
        assert {"kl/forward", "penalty/lambda", "ratio/clip_fraction", "loss/value", "time/update_seconds"} <= set(
            tags[run]
        )
        assert {tag for tag in tags[run] if metric_of(tag) is None} == set()
    assert "kl/target_low" in tags["CartPole-v1/kl_adaptive/seed0"]
    assert "kl/target_low" not in tags["CartPole-v1/clip/seed0"]


def test_it_serves_the_points_over_environment_steps(ask):
    points = ask("scalars/scalars?run=CartPole-v1/kl_adaptive/seed0&tag=kl/forward")
    assert [step for _, step, _ in points] == [256, 512, 768]


def test_it_serves_the_layout_with_the_band(ask):
    layout = ask("custom_scalars/layout")
    glance, band, _ = layout["category"]
    (series,) = band["chart"][0]["margin"]["series"]
    charts = {chart["title"]: chart for chart in glance["chart"]}
    assert series == {"value": "kl/controlled", "lower": "kl/target_low", "upper": "kl/target_high"}
    assert charts["penalty's share of the loss"]["multiline"]["tag"] == ["penalty/share"]


def test_it_says_beside_each_chart_what_the_tag_means(ask):
    told = ask("scalars/tags")["CartPole-v1/clip/seed0"]
    assert GLOSSARY["ratio/clip_fraction"].meaning.split(" (")[0] in told["ratio/clip_fraction"]["description"]
    assert "epoch i met it" in told["kl/epoch_1"]["description"]


def test_it_serves_histograms_and_the_configuration_as_text(ask):
    run = "CartPole-v1/kl_adaptive/seed0"
    assert {"kl/per_state", "ratio/per_sample", "policy/action_0"} <= set(ask("histograms/tags")[run])
    (_, step, buckets), *_ = ask(f"histograms/histograms?run={run}&tag=policy/action_0")
    assert step == 256
    assert sum(count for _, _, count in buckets) == 256
    (text, *_) = ask(f"text/text?run={run}&tag=config/text_summary")
    assert "kl_target: 0.01" in text["text"]


def test_it_serves_one_table_with_the_settings_of_both_families(ask):
    experiment = ask("hparams/experiment", {"experimentName": ""})
    columns = {info["name"] for info in experiment["hparamInfos"]}
    assert {
        "objective.controller.kl_target",
        "objective.surrogate.clip_eps",
        "objective.name",
        "training.lr",
    } <= columns
    groups = ask(
        "hparams/session_groups", {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "sliceSize": 9}
    )
    rows = {group["hparams"]["objective.name"]: group["hparams"] for group in groups["sessionGroups"]}
    assert set(rows) == {"kl_adaptive", "clip"}
    assert rows["kl_adaptive"]["objective.controller.kl_target"] == 0.01
    assert rows["clip"]["objective.surrogate.clip_eps"] == 0.2
    assert "objective.surrogate.clip_eps" not in rows["kl_adaptive"]
