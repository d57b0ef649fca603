"""The lines that `make mutants` breaks are still there to be broken."""

import pytest
from script_modules import ROOT, load_script

mutants = load_script("mutants")


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_the_line_stands_once_and_its_tests_exist(mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.line) == 1
    assert mutant.line != mutant.broken
    assert all((ROOT / path.partition("::")[0]).exists() for path in mutant.tests.split())
