"""What `ppo-kl inspect` prints: readable at 80 columns, plain where it is no terminal."""

import io

import numpy as np
import pytest
from rich.console import Console
from told_runs import free, run, steered

from ppo_kl.diagnostics.facts import facts_of
from ppo_kl.diagnostics.story import tell
from ppo_kl.diagnostics.terminal import show, show_several

N = 100
LEARNING = {"rollout/return_last100": np.linspace(10, 200, N), "rollout/return_mean": np.linspace(10, 200, N)}
RUNS = {
    "kl_adaptive": run(steered(np.tile([0.009, 0.011], N // 2), np.linspace(1, 2, N), **LEARNING)),
    "clip": run(free(np.tile([0.003, 0.005], N // 2), **LEARNING), objective="clip"),
    "bare": run({"kl/forward": np.full(N, 0.01)}, config=False),
    "no number at all": run({"kl/forward": np.nan}, config=False, nonfinite={"kl/forward": N}),
    "one update": run(steered(np.array([0.01])), n=1),
}


def printed(show, *stories, width=80, terminal=False):
    file = io.StringIO()
    show(Console(file=file, width=width, force_terminal=terminal, highlight=False), *stories)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", RUNS)
def test_no_line_is_wider_than_the_screen_and_a_pipe_gets_plain_text(name, width):
    one, several = (
        printed(show, tell(RUNS[name]), width=width),
        printed(show_several, [tell(RUNS[name])] * 3, width=width),
    )
    for text in (one, several):
        assert "\x1b" not in text
        assert max(len(line) for line in text.splitlines()) <= width


def test_a_run_is_told_from_its_name_to_its_numbers():
    text = printed(show, tell(RUNS["kl_adaptive"]))
    assert text.startswith(
        "CartPole-v1 · kl_adaptive · seed 0\nfinished, 25,600 of 100,000 steps in 100 updates\nruns/"
    )
    parts = [
        "✓ The KL was held at its target",
        "KL of the updates, nats",
        "0.015 ┤",
        "25,600 steps",
        "  return  ▁",
        "\nReturn ",
        "\nKL   ",
        "\n  target ",
        "\n  tracking ",
        "\nλ ",
        "\nNot finite ",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_colour_is_for_terminals_and_not_for_those_who_want_none(monkeypatch):
    assert "\x1b[1;32m" in printed(show, tell(RUNS["kl_adaptive"]), terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "32m" not in printed(show, tell(RUNS["kl_adaptive"]), terminal=True)


def test_a_table_has_a_row_for_each_run_and_names_an_objective_once():
    stories = [tell(RUNS[name]) for name in ("kl_adaptive", "clip")]
    table, verdicts = printed(show_several, [stories[0], stories[1], stories[0]]).split("\n\n")[:2]
    header, _, *rows = table.splitlines()[1:]
    assert header.split() == [
        "objective",
        "seed",
        "steps",
        "return",
        "learning",
        "KL",
        "/target",
        "inside",
        "λ",
        "clip",
    ]
    assert rows[0].split() == ["clip", "0", "25.6k", "200", "▁▂▃▄▅▆▇█", "0.004", "0", "10%"]
    assert rows[1].split() == ["kl_adaptive", "0", "25.6k", "200", "▁▂▃▄▅▆▇█", "0.01", "1.00", "100%", "2"]
    assert len(rows) == 3
    assert "kl_adaptive" not in rows[2]
    assert verdicts.count("✓") == 3


def facts(story):
    return {name.strip(): text for name, text in facts_of(story)}


def test_what_a_run_did_not_measure_is_left_out():
    told = facts(tell(RUNS["bare"]))
    assert set(told) == {"Return", "KL", "worst", "target", "λ", "Not finite"}
    assert told["target"] == "none"
    assert told["λ"] == "0: no penalty"


def test_what_a_run_measured_besides_is_told():
    columns = steered(np.full(N, 0.01), **LEARNING) | {
        "ratio/min": 0.5,
        "ratio/max": 2.0,
        "ratio/ess": 0.9,
        "penalty/share": 0.4,
        "penalty/grad_norm_ratio": 0.3,
        "penalty/grad_cosine": -0.5,
        "penalty/implied_lambda": 0.7,
        "policy/entropy": np.linspace(1, 0.5, N),
        "policy/scale_mean": np.linspace(1, 0.5, N),
        "policy/std_at_bound": 0.25,
        "value/explained_variance": 0.9,
        "optim/stopped_early": 0.5 + 0.5 * (np.arange(N) % 2),
        "eval/return_mean": 150.0,
        "env/nonfinite": np.eye(1, N)[0],
    }
    told = facts(tell(run(columns)))
    assert told["Return"].endswith("evaluated 150")
    assert told["Ratio"] == "0.5 to 2; effective samples at least 90%"
    assert told["Penalty"] == "median 0.4 of the surrogate; its gradient 0.3 of the surrogate's, cosine -0.50"
    assert told["implied"].startswith("median 0.7")
    assert told["Std"] == "1 at first, 0.5 at the end; 25% at a bound"
    assert told["Explained var."].startswith("0.90 in the last tenth")
    assert told["Early stop"] == "50% of the updates"
    assert told["Not finite"] == "1 episodes cut"
