"""A process counts the cores that it may use, not those that the machine has."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ppo_kl.envs.cores import cores_allowed


@pytest.fixture(autouse=True)
def _may_run_on_six(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("max 100000", 6),
        ("200000 100000", 2),
        ("250000 100000", 3),  # two and a half
        ("50000 100000", 1),
        ("1600000 100000", 6),
        ("nonsense", 6),
    ],
)
def test_a_container_may_allow_fewer_than_the_scheduler(tmp_path, limit, cores):
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert cores_allowed(tmp_path / "cpu.max") == cores


def test_without_a_container_it_is_what_the_scheduler_allows(tmp_path):
    assert cores_allowed(tmp_path / "cpu.max") == 6


def test_where_no_scheduler_tells_it_is_what_the_machine_has(tmp_path, monkeypatch: Any):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cores_allowed(tmp_path / "cpu.max") == 3
