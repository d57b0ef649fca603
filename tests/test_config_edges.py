"""Every setting with every kind of nonsense, from files and options: refused before anything is created.

The table is read from the dataclasses, so that a new setting is in it.
"""

import contextlib
import dataclasses
import io
import itertools
import math
import operator
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from ppo_kl.cli import main
from ppo_kl.commands import train
from ppo_kl.config import TrainConfig
from ppo_kl.config.checked import LARGEST, SMALLEST, types_of
from ppo_kl.config.objective import KINDS, Adaptive, Banded, ObjectiveConfig
from ppo_kl.config.presets import PRESETS
from ppo_kl.config.unknown import groups, kinds_with
from ppo_kl.errors import ConfigError
from ppo_kl.load import from_yaml, load_config

HOLDS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
NONSENSE = ["-1", "0", "-0.5", ".nan", ".inf", "-.inf", "1e300", "1e-300", "1" + 30 * "0", "1.5", "fast", "true", "[1]"]
# What must be set beside a setting so that it is not ignored, or does not contradict another.
BESIDE = {
    "env.timeout": {"env.vectorization": "async"},
    "runtime.workers": {"env.num_envs": 2000},
    "policy.memory_size": {"policy.memory": "gru"},
    "policy.log_std_min": {"policy.log_std_init": 2},
    "policy.log_std_max": {"policy.log_std_init": -20, "policy.log_std_min": -20},
    "evaluation.episodes": {"evaluation.every": 1},
    "evaluation.max_steps": {"evaluation.every": 1},
    "training.sequence_length": {"policy.memory": "gru"},
    "training.lr_kl_target": {"training.lr_schedule": "kl_adaptive"},
    "training.kl_stop.threshold": {"training.kl_stop.scope": "before_step"},
    "training.kl_stop.multiplier": {"training.kl_stop.scope": "before_step"},
    "objective.controller.kl_target_per_dim": {"objective.controller.kl_target": "none"},
}


class Option(typing.NamedTuple):
    """A numeric setting, and what selects the part of the objective that has it."""

    key: str
    whole: bool
    bounds: dict
    listed: bool = False
    kind: str | None = None

    def holds(self, text):
        """Whether the text is a number within the declared range."""
        try:
            number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            return False
        if not math.isfinite(number) or (self.whole and not number.is_integer()):
            return False
        held = number == 0 or self.whole or SMALLEST <= abs(number) <= LARGEST
        return held and all(HOLDS[sign](number, bound) for sign, bound in self.bounds.items())

    def in_yaml(self, text):
        """A file with the setting on a line of its own."""
        settings = {self.key: f"[{text}]" if self.listed else text, **BESIDE.get(self.key, {})}
        if self.kind is not None:
            group = self.key.rpartition(".")[0]
            settings = {f"{group}.kind": self.kind, **settings}
        return as_yaml(settings)

    def on_the_command_line(self, text):
        option = f"--{self.key.replace('_', '-')}={text}"
        return [option] if self.kind is None else [f"--{self.key.rpartition('.')[0]}.kind", self.kind, option]


def as_yaml(settings):
    """Dotted keys as nested lines."""
    tree = {}
    for key, value in settings.items():
        *path, name = key.split(".")
        node = tree
        for step in path:
            node = node.setdefault(step, {})
        node[name] = value

    def lines(node, indent):
        for name, value in node.items():
            yield f"{indent}{name}:{'' if isinstance(value, dict) else f' {value}'}"
            if isinstance(value, dict):
                yield from lines(value, indent + "  ")

    return "\n".join(lines(tree, ""))


def numeric(prefix, cls, kind=None):
    for field in dataclasses.fields(cls):
        declared = types_of(cls)[field.name]
        found = {declared, *typing.get_args(declared)} & {int, float}
        if found:
            listed = typing.get_origin(declared) is tuple
            yield Option(f"{prefix}{field.name}", int in found, dict(field.metadata), listed, kind)


OPTIONS = [*numeric("", TrainConfig), *(o for place, group in groups() for o in numeric(f"{place}.", group))]
for family, parts in KINDS.items():
    for kind, part in parts.items():
        OPTIONS += numeric(f"objective.{family.__name__.lower()}.", part, kind)
CASES = [(option, text) for option in OPTIONS for text in NONSENSE]


def answer(option, text):
    """What a file with the setting comes to: none where it is accepted, else the complaint."""
    try:
        from_yaml(option.in_yaml(text), "f.yaml")
    except ConfigError as error:
        return str(error)
    return None


def wrongly_answered():
    """The cases that are accepted outside their declared range; without `assert`, to be asked under -O."""
    return [(option.key, text) for option, text in CASES if not option.holds(text) and answer(option, text) is None]


def test_the_table_has_every_group_and_part():
    assert len(OPTIONS) > 80
    assert {"seed", "env.num_envs", "training.kl_stop.threshold", "policy.hidden_sizes"} <= {o.key for o in OPTIONS}
    assert set(BESIDE) <= {o.key for o in OPTIONS}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: f"{o.key}{f'({o.kind})' if o.kind else ''}")
def test_a_number_outside_its_range_is_refused_with_place_key_value_and_range(option):
    for text in NONSENSE:
        if option.holds(text):
            continue
        said = answer(option, text)
        assert said is not None, f"{option.key}={text} was accepted"
        assert re.match(r"f\.yaml:\d+:\d+: ", said), said
        assert option.key in said
        number = text.replace(".inf", "inf").replace(".nan", "nan")
        written = {text, number, repr(text), "a list"}
        with contextlib.suppress(ValueError):
            written |= {repr(float(number)), str(int(float(number)))} if math.isfinite(float(number)) else set()
        assert any(word in said for word in written), said
        assert "allowed: " in said or "expected " in said, said


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: f"{o.key}{f'({o.kind})' if o.kind else ''}")
def test_the_ends_of_a_range_that_belong_to_it_are_accepted(option):
    for sign, bound in option.bounds.items():
        if "=" in sign:
            assert answer(option, str(bound)) is None
    if option.whole:
        assert {">=", ">"} & set(option.bounds), "a whole number wants a lower bound"
        assert {"<=", "<"} & set(option.bounds), "a whole number wants an upper bound"


def test_no_check_is_an_assert_that_python_leaves_out():
    code = "import test_config_edges as t; assert False; print(len(t.CASES), t.wrongly_answered())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-O", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == f"{len(CASES)} []", done.stderr


def once():
    """Each numeric option once with something it cannot mean, another kind of nonsense from one to the next."""
    seen = set()
    for number, option in enumerate(o for o in OPTIONS if not (o.key in seen or seen.add(o.key))):
        wrong = [t for t in ("nan", "-1", "inf", "0", "1e300", "fast", "1" + 400 * "0") if not option.holds(t)]
        yield option, wrong[number % len(wrong)]


def refused(arguments):
    """What `ppo-kl train` answers to options that it must refuse; as one line."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(["train", *arguments])
        except SystemExit as ended:
            status = ended.code
    assert status == 2, arguments
    return " ".join(re.sub("[│╭╮╰╯─]", " ", out.getvalue() + err.getvalue()).split())


@pytest.mark.parametrize(("option", "text"), list(once()), ids=lambda x: getattr(x, "key", str(x)[:8]))
def test_on_the_command_line_too_and_nothing_is_created(option, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    said = refused(option.on_the_command_line(text))
    assert option.key.rpartition(".")[2].replace("_", "-") in said.replace("_", "-")
    assert not list(tmp_path.iterdir())


HUGE = {
    "env.num_envs": 10**12,
    "training.num_steps": 10**15,
    "training.sequence_length": 10**12,
    "total_steps": 10**30,
    "seed": 2**64,
    "runtime.num_threads": 10**6,
    "env.timeout": 1e300,
    "policy.hidden_sizes": (10**9, 64),
    "policy.memory_size": 10**9,
    "objective.controller.kl_target": 10**400,
    "training.max_grad_norm": 1e300,
}


@pytest.mark.parametrize("key", HUGE)
def test_what_would_end_in_a_crash_or_want_of_memory_is_refused_from_python_too(key):
    with pytest.raises(ConfigError, match=re.escape(f"{key}=")):
        load_config(overrides={key: HUGE[key]})


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"training.num_steps": 10**6, "env.num_envs": 1000}, ["num_steps=1000000", "num_envs=1000", "100,000,000"]),
        ({"env.num_envs": 2000, "env.vectorization": "async"}, ["num_envs=2000", "<= 1024", "sync or native"]),
        ({"runtime.workers": 4, "env.num_envs": 4}, ["runtime.workers=4", "num_envs=4", "<= 3"]),
        ({"policy.hidden_sizes": (1,) * 65}, ["hidden_sizes", "65 layers", "<= 64"]),
    ],
)
def test_what_is_huge_only_together_is_refused_with_both(overrides, parts):
    with pytest.raises(ConfigError) as error:
        load_config(overrides=overrides)
    for part in parts:
        assert part in str(error.value)


# --- settings that contradict each other ------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "start", "high"), list(itertools.permutations((0.1, 1.0, 10.0))))
def test_lambda_begins_between_its_bounds(low, start, high):
    values = {"objective.controller.min": low, "objective.controller.kl_lambda": start}
    overrides = {**values, "objective.controller.max": high}
    if low <= start <= high:
        assert load_config(overrides=overrides).objective.controller.min == low
        return
    with pytest.raises(ConfigError) as error:
        load_config(overrides=overrides)
    for part in (f"kl_lambda={start}", f"min={low}", f"max={high}", "min <= kl_lambda <= max"):
        assert part in str(error.value)


@pytest.mark.parametrize(("low", "start", "high"), list(itertools.permutations((-3.0, -1.0, 1.0))))
def test_the_standard_deviation_begins_between_its_bounds(low, start, high):
    overrides = {"policy.log_std_min": low, "policy.log_std_init": start, "policy.log_std_max": high}
    if low <= start <= high:
        assert load_config(overrides=overrides).policy.log_std_init == start
        return
    with pytest.raises(ConfigError) as error:
        load_config(overrides=overrides)
    for part in (f"log_std_init={start}", f"log_std_min={low}", f"log_std_max={high}"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        (Adaptive, "factor", 1.0),
        (Adaptive, "factor", 0.5),
        (Adaptive, "band", 0.9),
        (Banded, "upper", 0.9),  # below 1 it would lie under `lower`, which is 1 at most
        (Banded, "lower", 1.1),
        (Banded, "up", 1.0),
        (Banded, "down", 1.0),
    ],
)
def test_edges_and_factors_that_would_turn_a_controller_round_are_refused(part, key, value):
    with pytest.raises(ConfigError, match=f"{key}={value}: allowed"):
        part(**{key: value})


# --- settings of another objective ------------------------------------------------------------------------------------

FOREIGN = [
    (name, family, key)
    for name, preset in PRESETS.items()
    for family, parts in KINDS.items()
    for key in sorted({f.name for part in parts.values() for f in dataclasses.fields(part)})
    if not hasattr(getattr(preset, family.__name__.lower()), key)
]


@pytest.mark.parametrize("name", PRESETS)
def test_a_setting_of_another_objective_is_refused_with_the_kinds_it_belongs_to(name):
    foreign = [(family, key) for preset, family, key in FOREIGN if preset == name]
    assert foreign
    for family, key in foreign:
        part = family.__name__.lower()
        own = getattr(PRESETS[name], part).kind
        with pytest.raises(ConfigError) as error:
            load_config(objective=name, overrides={f"objective.{part}.{key}": 1.0})
        said = f"it belongs to {part} {', '.join(kinds_with(key)[family])}, not to {own!r}"
        assert said in str(error.value)
        assert f"objective.{part}.{key}" in str(error.value)


WHOSE = "it belongs to controller adaptive, banded, pi, dual, proportional, not to 'fixed'"


def test_on_the_command_line_with_the_objective_and_those_that_have_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for option in (["--objective.controller.kl-target", "0.02"], ["--objective.controller.kl_target=0.02"]):
        said = refused(["--objective", "clip", *option])
        for part in (option[0].partition("=")[0], "objective 'clip'", WHOSE, "kl_adaptive", "kind adaptive"):
            assert part in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("first", [True, False])
def test_in_a_file_with_its_place_whether_the_objective_is_chosen_before_it_or_after(tmp_path, first):
    path = tmp_path / "f.yaml"
    path.write_text("objective:\n  controller: {kl_target: 0.02}\n")
    with pytest.raises(ConfigError) as error:
        # `runtime` is the last layer of all.
        load_config(objective="clip", **({"config": str(path)} if first else {"runtime": str(path)}))
    assert f"{path}:2:27: objective.controller.kl_target: unknown key: {WHOSE}" in str(error.value)


def test_a_key_of_another_group_is_named_where_it_belongs():
    for text, place in (
        ("gamma: 0.9", "training.gamma"),
        ("training: {num_envs: 2}", "env.num_envs"),
        ("objective: {surrogate: {kind: clip, kl_target: 1}}", "objective.controller.kl_target"),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"did you mean {place}?")):
            from_yaml(text, "f.yaml")
    assert "did you mean objective.controller.kl_target?" in refused(["--objective.surrogate.kl-target", "1"])


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("--training.gama", "--training.gamma"),
        ("--gamma", "--training.gamma"),
        ("--objective.controller.kl-targt", "--objective.controller.kl-target"),
        ("--env.num-env", "--env.num-envs"),
    ],
)
def test_an_unknown_option_gets_the_nearest_one(option, near):
    said = refused([option, "1"])
    assert option in said
    assert near in said


# --- which one wins ---------------------------------------------------------------------------------------------------


def test_an_option_wins_over_a_file_and_the_rest_of_the_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "f.yaml"
    path.write_text("seed: 4\ntraining: {gamma: 0.5, lr: 0.25}\n")
    seen = []
    monkeypatch.setattr("ppo_kl.training.trainer.train", lambda config, **_: seen.append(config) or _Done)
    train.main(["--config", str(path), "--training.gamma", "0.75"])
    (config,) = seen
    assert (config.seed, config.training.gamma, config.training.lr) == (4, 0.75, 0.25)


class _Done:
    exit_status = 0


def test_a_part_of_another_kind_takes_nothing_from_the_one_it_replaces(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("objective:\n  controller: {kind: adaptive, kl_target: 0.5, kl_lambda: 3}\n")
    assert load_config(config=str(path), kinds={"controller": "pi"}).objective.controller.kl_lambda == 1.0
    assert load_config(config=str(path), objective="clip").objective == PRESETS["clip"]
    assert load_config(config=str(path)).objective == ObjectiveConfig(controller=Adaptive(kl_target=0.5, kl_lambda=3))
