"""The lines that `make mutants` breaks are still there to be broken."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("mutants", ROOT / "scripts" / "mutants.py")
mutants = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutants)


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_the_line_stands_once_and_its_tests_exist(mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.line) == 1
    assert mutant.line != mutant.broken
    assert all((ROOT / path).exists() for path in mutant.tests.split())
