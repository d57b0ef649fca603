"""What is left where processes are killed, or write the same: always something whole."""

import json
import subprocess
import sys
from typing import Any

import killing
import pytest


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    """What `killing` found, by scene."""
    words = [sys.executable, killing.__file__, str(tmp_path_factory.mktemp("killed"))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_fifty_kills_while_saving_lose_no_checkpoint(found):
    newest = found["saving"]["newest"]
    assert len(newest) == killing.KILLS + 1
    assert newest == sorted(newest)
    assert newest[1] > 0


def test_what_the_kills_left_half_written_is_gone_once_it_saves_again(found):
    assert found["saving"]["in_the_middle"] > 0, "no kill came in the middle of a save"
    assert found["saving"]["left"] == []


def test_two_processes_that_save_to_one_path_never_mix(found):
    assert found["together"] == {"seen": [1, 2], "statuses": [0, 0], "left": ["agent.pt"]}


def test_a_kill_while_logging_leaves_every_finished_iteration_readable_in_both_logs(found):
    assert found["logging"]["runs"]
    for run in found["logging"]["runs"]:
        rows, points = run["rows"], run["points"]
        assert rows == list(range(1, len(rows) + 1))
        assert points == list(range(1, len(points) + 1))
        # A line is written before the points of the same iteration are.
        assert len(rows) - 1 <= len(points) <= len(rows)
        assert len(rows) > 1


def test_eight_processes_that_start_together_get_eight_folders(found):
    starting = found["starting"]
    assert starting["statuses"] == [0] * 8
    assert sorted(starting["owners"]) == ["seed0", *(f"seed0-{n}" for n in range(2, 9))]
    assert sorted(starting["owners"].values()) == sorted(starting["children"])
