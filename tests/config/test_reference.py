"""The page about every setting: nothing is missing from it, and what it shows is what happens."""

import dataclasses
import re
from pathlib import Path

import pytest

from ppo_kl.cli import main
from ppo_kl.config import TrainConfig
from ppo_kl.config.checked import Settings, types_of
from ppo_kl.config.objective import KINDS
from ppo_kl.config.presets import PUBLISHED
from ppo_kl.config.reference import as_markdown, meanings
from ppo_kl.config.unknown import groups
from ppo_kl.load import load_config

TEXT = as_markdown()
PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
EVERY_GROUP = [TrainConfig, *(group for _, group in groups()), *(p for parts in KINDS.values() for p in parts.values())]


def section(heading):
    """The lines below a heading, up to the next one of its kind or above."""
    level = heading.split(" ")[0]
    (text,) = re.findall(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", TEXT, re.DOTALL | re.M)
    return text


def test_the_page_has_the_tables_as_they_are_generated():
    assert TEXT in PAGE, "run `make configs`"


def test_every_setting_has_a_row_with_its_range_default_and_meaning():
    for prefix, group in [("", TrainConfig), *((f"{place}.", group) for place, group in groups())]:
        for field in dataclasses.fields(group):
            kind = types_of(group)[field.name]
            if not (isinstance(kind, type) and issubclass(kind, Settings)):
                (row,) = re.findall(rf"^\| `{re.escape(prefix + field.name)}` \| .+ \| .+ \| .+ \|$", TEXT, re.M)
                assert meanings(group)[field.name] in row
    assert "| `training.gamma` | float >= 0 and <= 1 | `0.99` | Discount. |" in TEXT
    assert "| `policy.hidden_sizes` | list of int >= 1 and <= 16384 | `[64, 64]` |" in TEXT


@pytest.mark.parametrize("group", EVERY_GROUP, ids=lambda group: group.__name__)
def test_every_setting_says_what_it_means(group):
    said = meanings(group)
    values = [f.name for f in dataclasses.fields(group) if types_of(group)[f.name] not in (*EVERY_GROUP, *KINDS)]
    assert set(values) <= set(said)
    for name in values:
        assert said[name].endswith("."), f"{group.__name__}.{name}: {said[name]!r}"


@dataclasses.dataclass
class Parent:
    first: int = 1
    """Said once."""
    second: int = 2
    """Said by the parent."""


@dataclasses.dataclass
class Child(Parent):
    second: int = 3
    """Said by the child, in
    two lines."""


def test_a_meaning_said_again_in_a_child_wins_and_the_others_are_inherited():
    assert meanings(Child) == {"first": "Said once.", "second": "Said by the child, in two lines."}


def test_every_kind_names_the_presets_it_is_in():
    for make in PUBLISHED:
        preset = make()
        for family, parts in KINDS.items():
            part = getattr(preset, family.__name__.lower())
            assert part.kind in parts
            text = section(f"## `objective.{family.__name__.lower()}`")
            (line,) = re.findall(rf"^### `{part.kind}`\n\n(.*)$", text, re.M)
            assert f"`{make.__name__}`" in line


def test_every_example_of_the_page_answers_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my_typo.yaml").write_text("training:\n  gama: 0.9\n")
    Path("my_range.yaml").write_text("training:\n  gamma: 1\n  gae_lambda: 1.5\n")
    examples = re.findall(r"^\$ ppo-kl (.*)\n(ppo-kl: .*)$", PAGE, re.M)
    assert len(examples) >= 4
    for command, answer in examples:
        assert main(command.split()) == 2
        assert capsys.readouterr().err.strip() == answer


def test_the_file_of_the_page_is_a_configuration(tmp_path):
    (text,) = re.findall(r"```yaml\n(# my\.yaml.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my.yaml").write_text(text)
    overrides = {"training.gamma": 0.98, "seed": 3}
    config = load_config(config=str(tmp_path / "my.yaml"), objective="kl_pi", overrides=overrides)
    found = (config.seed, config.total_steps, config.env.id, config.training.num_steps, config.objective.name)
    assert found == (3, 1_000_000, "Hopper-v5", 512, "kl_pi")
