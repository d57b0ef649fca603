"""One's own parts: one call makes them a function, a setting and a preset; what does not fit is refused."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch

from ppo_kl.config.checked import setting
from ppo_kl.config.objective import (
    KINDS,
    Adapting,
    Adaptive,
    Clip,
    Controller,
    Fixed,
    ForwardKL,
    NoPenalty,
    ObjectiveConfig,
    Penalty,
    Ratio,
    Surrogate,
)
from ppo_kl.config.presets import PRESETS
from ppo_kl.errors import ConfigError
from ppo_kl.load import from_yaml, load_config, to_yaml
from ppo_kl.objectives import (
    Objective,
    register_controller,
    register_penalty,
    register_preset,
    register_surrogate,
)
from ppo_kl.objectives.controllers import CONTROLLERS
from ppo_kl.objectives.penalties import PENALTIES
from ppo_kl.objectives.surrogates import SURROGATES
from ppo_kl.testing import check_objective


@pytest.fixture(autouse=True)
def tables_as_they_were():
    tables = (PRESETS, SURROGATES, PENALTIES, CONTROLLERS, *KINDS.values())
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


@dataclass(frozen=True)
class Power(Surrogate):
    """The ratio to a power."""

    kind: ClassVar[str] = "power"
    power: float = setting(2.0, above=0)
    """Exponent."""


@dataclass(frozen=True)
class Remembers(Controller):
    """A number from one rollout to the next."""

    kind: ClassVar[str] = "remembers"
    memory: ClassVar[int] = 1


def power(ratio, adv, kl, *, power):
    return -(ratio**power) * adv / power


def plain(ratio, adv, kl):
    return -ratio * adv


def test_a_surrogate_is_at_once_a_setting_a_preset_and_in_the_objective():
    register_surrogate("power", power, Power)
    assert PRESETS["power"] == ObjectiveConfig("power", Power(), NoPenalty(), Fixed(0.0))
    objective = Objective.from_preset("power", power=3.0)
    x = torch.tensor([2.0]).log()
    # −2³ · 1 / 3
    assert objective(logp=x, logp_old=0 * x, adv=1 + 0 * x, kl=0 * x).loss.item() == pytest.approx(-8 / 3)


def test_its_settings_are_checked_like_any_other(tmp_path):
    register_surrogate("power", power, Power)
    file = tmp_path / "mine.yaml"
    file.write_text("objective:\n  surrogate: {kind: power, power: -1}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:2:35.*power=-1.*allowed: > 0"):
        load_config(objective=str(file))
    file.write_text("objective:\n  surrogate: {kind: power, pwer: 1}\n")
    with pytest.raises(ConfigError, match="did you mean 'power'"):
        load_config(objective=str(file))


def test_it_is_chosen_by_name_and_saved_and_read_back():
    register_surrogate("power", power, Power)
    config = load_config(env="cartpole", objective="power", overrides={"objective.surrogate.power": 1.5})
    assert config.objective.surrogate == Power(1.5)
    assert from_yaml(to_yaml(config), "saved") == config


def test_what_keeps_the_contract_passes_it_and_what_does_not_does_not():
    register_surrogate("power", power, Power)
    check_objective("power")
    register_surrogate("sampled", lambda ratio, adv, kl: -ratio * adv * (1 + torch.rand(())))
    with pytest.raises(AssertionError):
        check_objective("sampled")


def test_a_part_without_settings_needs_no_class():
    register_surrogate("plain", plain)
    assert PRESETS["plain"].surrogate.kind == "plain"
    assert Objective.from_preset("plain").config.surrogate == KINDS[Surrogate]["plain"]()
    check_objective("plain")


def test_a_penalty_is_added_with_its_direction_and_hinge():
    @dataclass(frozen=True)
    class Scaled(Penalty):
        """Twice the reverse KL."""

        kind: ClassVar[str] = "scaled"
        direction: ClassVar[Literal["forward", "reverse"]] = "reverse"
        scale: float = setting(2.0, above=0)
        """Factor."""
        hinge: float = setting(0.0, at_least=0)
        """As ours."""

    register_penalty("scaled", lambda kl, log_ratio, *, scale: scale * kl, Scaled)
    objective = Objective.from_preset("scaled", scale=5.0)
    assert PRESETS["scaled"] == ObjectiveConfig("scaled", Ratio(), Scaled(), Adaptive())
    assert objective.direction == "reverse"
    x = torch.zeros(4)
    assert objective(logp=x, logp_old=x, adv=x, kl=x + 0.3).penalty.item() == pytest.approx(1.5)
    walled = Objective.from_preset("scaled", scale=5.0, hinge=10.0)
    # + 10 · (.3 − 2 · .01)²
    assert walled(logp=x, logp_old=x, adv=x, kl=x + 0.3).penalty.item() == pytest.approx(1.5 + 0.784)
    check_objective("scaled")


def test_a_controller_gets_what_it_asks_for_by_name():
    @dataclass(frozen=True)
    class Leaky(Adapting):
        """Remembers a running mean of the KL."""

        kind: ClassVar[str] = "leaky"
        memory: ClassVar[int] = 1
        decay: float = setting(0.5, at_least=0, below=1)
        """Of the mean."""

    def leaky(kl_lambda, kl, kl_target, memory, *, decay):
        mean = decay * memory + (1 - decay) * kl.clamp(max=1.0)
        return kl_lambda * torch.where(mean[0] > kl_target, 2.0, 0.5), mean

    register_controller("leaky", leaky, Leaky)
    objective = Objective.from_preset("leaky")
    for kl, expected in ((0.04, 2.0), (0.008, 4.0), (0.0, 2.0)):  # means .02, .014, .007
        objective.adapt_(torch.tensor(kl))
        assert objective.kl_lambda.item() == expected
    check_objective("leaky")


def test_a_controller_that_does_not_ask_for_the_kl_is_a_schedule():
    @dataclass(frozen=True)
    class Halves(Controller):
        """λ halves over training."""

        kind: ClassVar[str] = "halves"
        kl_lambda: float = setting(4.0, above=0)
        """At the start."""

    register_controller("halves", lambda initial, progress: initial * 0.5**progress, Halves)
    objective = Objective.from_preset("halves")
    objective.adapt_(torch.tensor(100.0))
    assert objective.kl_lambda.item() == 4.0
    objective.adapt_(torch.tensor(100.0), progress=1.0)
    assert objective.kl_lambda.item() == 2.0


def test_without_a_class_of_its_own_a_controller_has_target_start_and_bounds():
    register_controller("sign", lambda kl_lambda, kl, kl_target: kl_lambda * torch.where(kl > kl_target, 2.0, 0.5))
    objective = Objective.from_preset("sign", kl_target=0.5, max=3.0)
    objective.adapt_(torch.tensor(0.6))
    objective.adapt_(torch.tensor(0.6))
    assert objective.kl_lambda.item() == 3.0
    check_objective("sign")


def test_a_whole_objective_is_added_under_its_own_name():
    mine = ObjectiveConfig("mine", Clip(0.1), ForwardKL(), Adaptive(kl_target=0.003))
    register_preset(mine)
    assert Objective.from_preset("mine").config == mine
    assert load_config(env="cartpole", objective="mine").objective == mine
    register_preset(mine)  # the same again is no fault
    with pytest.raises(ConfigError, match="another preset of that name"):
        register_preset(ObjectiveConfig("mine"))


def test_a_part_of_a_presets_name_is_refused_so_that_no_name_means_two_things():
    register_preset(ObjectiveConfig("power", Clip()))
    with pytest.raises(ConfigError, match="there is a preset of that name"):
        register_surrogate("power", power, Power)
    assert PRESETS["power"].surrogate == Clip()
    assert "power" not in SURROGATES


def test_the_same_again_is_no_fault_and_the_same_name_in_another_family_is():
    register_surrogate("power", power, Power)
    register_surrogate("power", power, Power)
    with pytest.raises(ConfigError, match="there is a preset of that name"):
        register_penalty("power", lambda kl, log_ratio: kl)


def test_tensors_are_handed_over_by_name_whatever_their_order():
    register_surrogate("other_way", lambda adv, kl, ratio: -ratio * adv)
    register_penalty("keyword_only", lambda *, log_ratio, kl: kl)
    x = torch.tensor([2.0]).log()
    objective = Objective.from_preset("other_way")
    assert objective(logp=x, logp_old=0 * x, adv=3 + 0 * x, kl=0 * x).loss.item() == pytest.approx(-6)
    check_objective("keyword_only")


def test_bounds_named_min_and_max_are_the_rules_own_where_the_settings_are():
    @dataclass(frozen=True)
    class Own(Controller):
        """Bounds of its own."""

        kind: ClassVar[str] = "own"
        kl_lambda: float = setting(1.0, above=0)
        """At the start."""
        max: float = setting(2.0, above=0)
        """At most."""

    register_controller("own", lambda kl_lambda, kl, *, max: (2 * kl_lambda).clamp(max=max), Own)
    objective = Objective.from_preset("own")
    for _ in range(5):
        objective.adapt_(torch.tensor(1.0))
    assert objective.kl_lambda.item() == 2.0


def test_a_schedule_with_bounds_keeps_to_them():
    register_controller("falls", lambda initial, progress: initial - 1e6 * progress)
    objective = Objective.from_preset("falls")
    objective.schedule_(0.5)
    assert objective.kl_lambda.item() == pytest.approx(1e-4)
    check_objective("falls")


@pytest.mark.parametrize(
    ("register", "arguments", "message"),
    [
        (register_surrogate, ("clip", plain), "surrogate 'clip': the name is taken"),
        (register_surrogate, ("power", plain, Power), r"expected .*'ratio'.*which are \['power'\]"),
        (register_surrogate, ("power", power), r"which are \[\]"),
        (register_surrogate, ("odd", lambda ratio, adv: ratio), "'odd'.*'kl'"),
        (register_surrogate, ("odd", plain, Adaptive), "inherits from Surrogate"),
        (register_surrogate, ("odd", plain, 3), "inherits from Surrogate"),
        (register_penalty, ("none", lambda kl, log_ratio: kl), "penalty 'none': the name is taken"),
        (register_penalty, ("odd", lambda kl: kl), "'log_ratio'"),
        (register_controller, ("pi", lambda kl_lambda: kl_lambda), "controller 'pi': the name is taken"),
        (register_controller, ("odd", lambda kl_lambda, memory: kl_lambda), "memory=0"),
        (register_controller, ("odd", lambda kl_lambda, kel: kl_lambda), "'kel'"),
        (register_controller, ("odd", lambda kl, kl_target: kl, Fixed), r"asks for \['kl_target'\]"),
        (register_controller, ("odd", lambda memory: memory, Remembers), r"asks for \['memory'\]"),
        (register_surrogate, ("none", plain), "there is a preset of that name"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing_behind(register, arguments, message):
    tables = (PRESETS, SURROGATES, PENALTIES, CONTROLLERS, *KINDS.values())
    before = [dict(table) for table in tables]
    with pytest.raises(ConfigError, match=message):
        register(*arguments)
    assert [dict(table) for table in tables] == before


def test_settings_without_defaults_make_no_preset_and_are_refused():
    @dataclass(frozen=True)
    class Needy(Surrogate):
        kind: ClassVar[str] = "needy"
        amount: float

    with pytest.raises(ConfigError, match=r"\['amount'\].*defaults"):
        register_surrogate("needy", lambda ratio, adv, kl, *, amount: ratio, Needy)
