"""The page about the KL is what its script prints; the script needs nothing but torch and ours."""

import math
import re
import subprocess
import sys

import pytest
from script_modules import ROOT, load_script

from ppo_kl.cli import main

NUMBER = re.compile(r"-?(?:\d+\.?\d*(?:e[+-]?\d+)?|inf|nan)")


@pytest.fixture(scope="module")
def printed():
    generate = load_script("generate")
    return generate.executed(generate.KL_TOUR)


def test_the_page_is_the_tour_with_its_output(printed):
    page = (ROOT / "docs" / "kl.md").read_text()
    # Word for word; numbers to three digits, or to rounding where rounding is what is shown.
    assert re.sub(r" +", " ", NUMBER.sub("#", page)) == re.sub(r" +", " ", NUMBER.sub("#", printed)), (
        "run `make configs`"
    )
    for ours, theirs in zip(NUMBER.findall(printed), NUMBER.findall(page), strict=True):
        a, b = float(ours), float(theirs)
        assert a == b or math.isclose(a, b, rel_tol=1e-2, abs_tol=2e-6) or (math.isnan(a) and math.isnan(b)), (
            "make configs"
        )


def rows_of(printed):
    """The table of errors: case -> true, torch, its gradient, ours, our gradient, our error."""
    lines = [
        line
        for line in printed.splitlines()
        if re.match(r"(Categorical|Bernoulli|Normal|Beta|Full).*(against|of 1e)", line)
    ]
    return {line[:38].strip(): [float(x) for x in line[38:].split()] for line in lines}


def test_in_the_table_we_are_right_where_torch_is_not(printed):
    rows = rows_of(printed)
    assert len(rows) == 16
    for case, (true, _, _, ours, slope, error) in rows.items():
        assert abs(ours / true - 1) < 1e-4, case
        assert error < 1e-4, case
        assert math.isfinite(slope), case
        assert slope != 0, case
    broken = [case for case, (true, torchs, *_) in rows.items() if not abs(torchs / true - 1) < 0.1]
    assert len(broken) >= 9


def test_every_claim_of_equality_holds(printed):
    def value(label):
        (found,) = re.findall(re.escape(label) + r" *(" + NUMBER.pattern + ")", printed)
        return float(found)

    assert value("by hand") == value("kl_divergence  ")
    assert value("cross-entropy − entropy =") == pytest.approx(value(",  KL ="), abs=2e-6)
    assert value("KL(worms ‖ uniform) =") == pytest.approx(value("3.459432 − 3.262244 ="), abs=2e-6)
    assert value("fitted probability") == pytest.approx(value("mean number of teeth / 10 ="), abs=2e-6)
    right = value("mean over the batch of KL(P ‖ Q)")
    for same in ("F.kl_div(Q.log(), P)  ", "F.kl_div(Q.log(), P.log(), log_target=True)", "nn.KLDivLoss()(Q.log(), P)"):
        assert value(same) == pytest.approx(right, abs=2e-6)
    for trap in ("kl_div(P.log(), Q)", "kl_div(Q, P)", "divided by 2 · 3"):
        assert abs(value(trap) - right) > 0.005


def test_the_tour_runs_as_it_stands():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "kl_tour.py"], capture_output=True, text=True, check=True)
    assert "by hand" in done.stdout
    assert not done.stderr


# --- docs/policies.md -------------------------------------------------------------------------------------------------


def test_the_network_on_the_page_about_policies_can_be_learned_with(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "policies.md").read_text()
    (code,) = re.findall(r"```python\n# my_nets\.py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "nets_on_the_page.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (command,) = re.findall(r"`ppo-kl (train .*--policy\.module .*)`", page)
    arguments = command.replace("my_nets:", "nets_on_the_page:").split()
    assert main([*arguments, "--total-steps", "512", "--runs-dir", str(tmp_path / "runs"), "--quiet"]) == 0
