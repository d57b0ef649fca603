"""Pressing TAB behind `ppo-kl`, as bash does it: the script is sourced, and its function asked."""

import re
import subprocess
import sys

import pytest

from ppo_kl.cli import COMMANDS, main
from ppo_kl.commands.completion import _nothing, options_of, script
from ppo_kl.config.objective import CONTROLLER_KINDS
from ppo_kl.load import shipped

ASK = """
source "$1"; shift
[[ $(complete -p ppo-kl) =~ -F\\ ([^ ]+) ]]
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
"${BASH_REMATCH[1]}"
for answer in "${COMPREPLY[@]}"; do printf '%s\\n' "$answer"; done
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "ppo-kl"
    path.write_text(script("bash"))
    return path


@pytest.fixture
def offered(bash_script, tmp_path):
    def ask(line):
        words = ["ppo-kl", *line.split(" ")]
        done = subprocess.run(
            ["bash", "-c", ASK, "ask", bash_script, *words], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert not done.stderr
        return done.stdout.splitlines()

    return ask


def test_the_commands(offered):
    assert set(COMMANDS) == set(offered(""))
    assert offered("tr") == ["train"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train --env ", shipped("env")),
        ("train --env cart", ["cartpole"]),
        ("train --quiet --env cartpole --objective kl_p", ["kl_pi"]),
        ("train --kl-stop sb", ["sb3"]),
        ("train --runtime ", ["cpu", "cuda"]),
        ("train --config pat", ["pat_coady"]),
        ("train --objective.controller.kind ", list(CONTROLLER_KINDS)),
        ("train --env.vectorization as", ["async"]),
        ("train --training.gam", ["--training.gamma"]),
        ("train --policy.act", ["--policy.activation", "--policy.action-transform"]),
        ("evaluate --epi", ["--episodes"]),
        ("evaluate runs --sto", ["--stochastic"]),
    ],
)
def test_options_and_the_names_of_shipped_files(offered, line, expected):
    assert offered(line) == expected


@pytest.mark.parametrize("line", ["evaluate ", "train --env my_f", "train --env.id "])
def test_where_no_name_of_ours_fits_nothing_is_offered_so_that_bash_offers_files(offered, line):
    assert offered(line) == []


def test_one_line_is_one_answer(offered):
    answers = offered("train --")
    assert "--training.kl-stop.scope" in answers
    assert all(answer.startswith("--") and " " not in answer for answer in answers)


def test_pressing_tab_starts_a_bare_interpreter_that_loads_nothing_of_ours_and_no_library(bash_script):
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", bash_script.read_text(), re.MULTILINE))
    assert imported
    assert imported <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_function_of_its_name_whose_parameters_are_its_options(command):
    assert options_of(command) is not _nothing


def test_the_script_is_the_same_each_time():
    assert script("bash") == script("bash")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_with_the_same_names(shell, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for word in (*shipped("env"), *COMMANDS, "--training.gamma", "--episodes"):
        assert word in text


def test_another_shell_is_refused_with_those_there_are():
    command = [sys.executable, "-m", "ppo_kl", "completion", "tcsh"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert all(shell in done.stderr for shell in ("bash", "zsh", "fish"))
