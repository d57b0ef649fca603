"""Compiled gradient steps: whatever is trained, they compute what eager ones do."""

import copy
import shutil
import warnings

import my_nets
import pytest
import torch
from every_family import EVERY_FAMILY
from learner_parts import FAMILIES, batch_of, make, path_of, same_numbers, seeded

from ppo_kl.batch import Batch, tensors_in
from ppo_kl.config.policy import PolicyConfig
from ppo_kl.config.presets import PRESETS
from ppo_kl.config.training import KL_STOPS, KLStop, TrainingConfig
from ppo_kl.errors import EngineWarning
from ppo_kl.objectives import Objective
from ppo_kl.observations import Part
from ppo_kl.policies.actor_critic import ActorCritic
from ppo_kl.policies.box_families import GaussianFamily
from ppo_kl.policies.custom import make_policy
from ppo_kl.policies.families import CategoricalFamily
from ppo_kl.training import engine
from ppo_kl.training.engine import cannot_compile
from ppo_kl.training.learner import Learner

ITERATIONS = 20


def traced(step, options, dynamic):
    """The graph that would be compiled, run without a C++ compiler."""
    kept = {"guard_filter_fn": options["guard_filter_fn"]}
    return torch.compile(step, fullgraph=True, backend="aot_eager_decomp_partition", options=kept, dynamic=dynamic)


@pytest.fixture(autouse=True)
def as_if_there_were_a_compiler(monkeypatch):
    monkeypatch.setattr(engine, "cannot_compile", lambda device: None)


@pytest.fixture
def graphs_only(monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(engine, "_compile", traced)


def both_ways(build):
    """The same learner twice, eager and compiled."""
    eager, compiled = build(), build()
    compiled.compile()
    return eager, compiled


def require_same(eager: Learner, compiled: Learner, batch_for=batch_of, iterations: int = ITERATIONS) -> None:
    """From one gradient step to many iterations with λ adapted after each."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        # Adam's first moment after one step is a tenth of the gradient, clipped.
        first, second = (learner.update(batch_for(learner), 0.0) for learner in (eager, compiled))
        same_numbers(first, second, 1e-5)
        torch.testing.assert_close(compiled.exp_avg, eager.exp_avg, rtol=1e-4, atol=1e-6)
        paths = [[path_of(learner, batch_for) for _ in range(iterations)] for learner in (eager, compiled)]
    for before, after in zip(*paths, strict=True):
        assert before["penalty/lambda"] == after["penalty/lambda"]
        same_numbers(before, after, 2e-3)
    assert compiled.compiled.seconds > 0


# --- everything that enters a step ------------------------------------------------------------------------------------


def soon(cases, names) -> list:
    """All cases by name, those that are not among `names` for the slow tests: each takes seconds to trace."""
    return [
        pytest.param(case, id=name, marks=[] if name in names else pytest.mark.slow) for name, case in cases.items()
    ]


PRESETS_BY_NAME = {name: name for name in PRESETS}


@pytest.mark.usefixtures("graphs_only")
@pytest.mark.parametrize("objective", soon(PRESETS_BY_NAME, {"clip", "kl_adaptive", "kl_hinge", "truly_ppo"}))
def test_every_objective_is_one_graph_that_equals_it(objective):
    def build():
        return make(objective=Objective(PRESETS[objective], num_action_dims=2), minibatch_size=4)

    require_same(*both_ways(build))


@pytest.mark.usefixtures("graphs_only")
@pytest.mark.parametrize("family", EVERY_FAMILY.values(), ids=EVERY_FAMILY)
def test_every_family_is_one_graph_that_equals_it(family):
    require_same(*both_ways(lambda: make(family, "kl_clip", minibatch_size=4, ent_coef=0.01)))


SETTINGS = {
    "all of the loss": {"clip_grad": "apart", "advantage_norm": "minibatch", "value_clip": 0.2, "ent_coef": 0.01},
    "no limit, own critic": {"max_grad_norm": None, "critic_lr": 5e-3, "lr_schedule": "linear"},
    "lr by minibatch": {"lr_schedule": "kl_adaptive", "lr_kl_target": 1e-4},
    "lr by epoch": {"lr_schedule": "kl_adaptive", "lr_kl_target": 1e-4, "lr_kl_cadence": "epoch"},
    **{f"stop as {name}": {"kl_stop": stop} for name, stop in KL_STOPS.items() if name != "off"},
    "actor stops": {"kl_stop": KLStop("before_step", "k3", threshold=1e-4, stops="actor")},
}


@pytest.mark.usefixtures("graphs_only")
@pytest.mark.parametrize(
    "settings", soon(SETTINGS, {"all of the loss", "lr by minibatch", "stop as sb3", "actor stops"})
)
def test_every_setting_of_an_update_goes_into_the_graph(settings):
    require_same(*both_ways(lambda: make(objective="kl_adaptive", minibatch_size=4, **settings)))


def with_invalid_rows(learner: Learner) -> Batch:
    batch = batch_of(learner)
    valid = torch.arange(10) % 4 != 1  # 7 of 10
    return batch._replace(valid=valid, adv=torch.where(valid, batch.adv, torch.nan))


def with_masks(learner: Learner) -> Batch:
    batch = batch_of(learner)
    mask = torch.rand(10, 4, generator=seeded(5)) < 0.7
    return batch._replace(action_mask=mask.scatter(1, batch.action[:, None], True))


@pytest.mark.usefixtures("graphs_only")
def test_rows_that_are_no_transitions_and_masks_go_into_the_graph():
    family = FAMILIES["categorical"]
    for batch_for in (with_invalid_rows, with_masks):
        require_same(*both_ways(lambda: make(family, "kl_clip", minibatch_size=4)), batch_for)


@pytest.mark.usefixtures("graphs_only")
def test_how_many_rows_count_does_not_ask_for_another_graph():
    learner = make(FAMILIES["categorical"], minibatch_size=4)
    learner.compile()
    batch = batch_of(learner)
    for count in (9, 7, 5, 3, 2):
        learner.update(batch._replace(valid=torch.arange(10) < count), 0.0)
    assert len(learner.compiled._graphs) == 1


@pytest.mark.usefixtures("graphs_only")
def test_a_step_that_is_not_finite_leaves_the_weights_in_the_graph_too():
    learner = make(objective="kl_adaptive", minibatch_size=4)
    learner.compile()
    batch = batch_of(learner)
    before = learner.parameters.flat.detach().clone()
    said = learner.update(batch._replace(ret=torch.full((10,), torch.nan)), 0.0)
    assert torch.equal(learner.parameters.flat.detach(), before)
    assert said["optim/skipped"] == 12  # 3 minibatches, 4 epochs
    assert learner.update(batch, 0.0)["optim/skipped"] == 0


@pytest.mark.usefixtures("graphs_only")
def test_a_setting_that_is_changed_by_hand_is_not_in_an_old_graph():
    learner, eager = make(objective="clip"), make(objective="clip")
    learner.compile()
    for each in (learner, eager):
        batch = batch_of(each)
        each.update(batch, 0.0)
        each.objective.set_clip_eps_(1e-3)
        each.update(batch, 0.0)
    torch.testing.assert_close(learner.parameters.flat, eager.parameters.flat, rtol=0, atol=1e-6)


# --- worlds -----------------------------------------------------------------------------------------------------------


def sequences_of(learner: Learner, S: int = 3, L: int = 2) -> Batch:
    """S sequences of L steps, π_old that of now; the last step of one does not count."""
    generator, state = seeded(3), learner.policy.initial_state(S)
    obs = torch.randn(S, L, 3, generator=generator)
    with torch.no_grad():
        params, value, _ = learner.policy(obs, state)
        action = learner.family.sample(params, generator)
        logp = learner.family.build(params).log_prob(action)
    adv = torch.randn(S * L, generator=generator)
    return Batch(obs, action, logp, params, adv, value + adv, value, torch.arange(S * L) != 3, state=state)


def recurrent(memory: str, **settings) -> Learner:
    family, config = GaussianFamily((-1.0,), (1.0,), (1,)), PolicyConfig((4,), memory=memory, memory_size=3)
    policy = ActorCritic((Part((), "vector", (3,)),), family, config, seeded())
    training = TrainingConfig(**{"num_epochs": 2, "minibatch_size": 100, "lr": 1e-3, **settings})
    return Learner(policy, family, Objective(PRESETS["clip"]), training, seeded(2))


@pytest.mark.usefixtures("graphs_only")
@pytest.mark.parametrize("memory", ["gru", pytest.param("lstm", marks=pytest.mark.slow)])
def test_any_number_of_sequences_goes_into_one_graph(memory):
    # The first number is that of the observation's dimensions, of the memory's and of a sequence's steps as well.
    eager, compiled = both_ways(lambda: recurrent(memory))
    for S in (3, 6, 5, 2, 9):
        require_same(eager, compiled, lambda learner, S=S: sequences_of(learner, S, 3), iterations=1)
    assert len(compiled.compiled._graphs) == 1


@pytest.mark.usefixtures("graphs_only")
def test_a_single_sequence_is_another_graph():
    eager, compiled = both_ways(lambda: recurrent("gru", minibatch_size=2))
    for S in (1, 2):  # of two steps: 1 and 2 sequences in a minibatch, then 2 minibatches of 1
        require_same(eager, compiled, lambda learner, S=S: sequences_of(learner, S), iterations=1)


@pytest.mark.slow
@pytest.mark.usefixtures("graphs_only")
def test_sequences_of_another_length_are_another_graph_and_not_a_wrong_answer():
    eager, compiled = both_ways(lambda: recurrent("gru"))
    for L in (2, 3):
        require_same(eager, compiled, lambda learner, L=L: sequences_of(learner, 4, L), iterations=1)
    assert len(compiled.compiled._graphs) == 2


MIXED = (
    Part(("cam",), "image", (16, 16, 3), "uint8", scale=255.0),
    Part(("room",), "index", (), "int64", (4,), (0,)),
    Part(("pos",), "vector", (2,)),
)


def mixed_batch_of(learner: Learner) -> Batch:
    generator = seeded(3)
    obs = {
        "cam": torch.randint(0, 256, (10, 16, 16, 3), generator=generator, dtype=torch.uint8),
        "room": torch.randint(0, 4, (10,), generator=generator),
        "pos": torch.randn(10, 2, generator=generator),
    }
    with torch.no_grad():
        params, value, _ = learner.policy(obs)
        action = learner.family.sample(params, generator)
        logp = learner.family.build(params).log_prob(action)
    adv = torch.randn(10, generator=generator)
    return Batch(obs, action, logp, params, adv, value + adv, value, torch.ones(10, dtype=torch.bool))


@pytest.mark.usefixtures("graphs_only")
@pytest.mark.parametrize("trunk", [pytest.param("shared", marks=pytest.mark.slow), "separate"])
def test_images_indices_and_vectors_go_into_the_graph(trunk):
    def build():
        config = PolicyConfig(hidden_sizes=(4,), trunk=trunk, image_encoder="impala", activation="relu")
        policy = ActorCritic(MIXED, CategoricalFamily(3), config, seeded())
        training = TrainingConfig(num_epochs=2, minibatch_size=5, lr=1e-3)
        return Learner(policy, CategoricalFamily(3), Objective(PRESETS["kl_fixed"]), training, seeded(2))

    require_same(*both_ways(build), mixed_batch_of, iterations=2)


def tempered() -> Learner:
    policy = make_policy((Part((), "vector", (3,)),), CategoricalFamily(3), PolicyConfig(module=TEMPERED), seeded())
    training = TrainingConfig(num_epochs=2, minibatch_size=5, lr=1e-2)
    return Learner(policy, CategoricalFamily(3), Objective(PRESETS["clip"]), training, seeded(2))


TEMPERED = f"{my_nets.__name__}:Tempered"


@pytest.mark.usefixtures("graphs_only")
def test_a_number_that_a_network_of_one_s_own_looks_at_may_change():
    eager, compiled = both_ways(tempered)
    for temperature in (1.0, 3.0):
        for learner in (eager, compiled):
            learner.policy.module.temperature = temperature
        require_same(eager, compiled, iterations=1)
    assert eager.policy.module.temperature == 3.0


@pytest.mark.usefixtures("graphs_only")
def test_a_number_that_changes_in_every_update_ends_in_eager_steps_that_are_right():
    def anneal(*learners: Learner) -> None:
        with torch._dynamo.config.patch(recompile_limit=2):
            for temperature in range(1, 8):
                for learner in learners:
                    learner.policy.module.temperature = str(temperature)  # a number would be an input of the graph
                    learner.update(batch_of(learner), 0.0)

    eager, compiled = both_ways(tempered)
    with pytest.warns(EngineWarning, match=r"changed 2 times in a way that asks for another graph") as caught:
        anneal(eager, compiled)
    assert len(caught) == 1
    assert compiled.compiled.failure is not None
    torch.testing.assert_close(compiled.parameters.flat, eager.parameters.flat, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("graphs_only")
def test_what_is_forgotten_by_torch_compiler_reset_is_compiled_anew():
    eager, compiled = both_ways(lambda: make(objective="clip"))
    for _ in range(2):
        require_same(eager, compiled, iterations=1)
        torch.compiler.reset()


@pytest.mark.usefixtures("graphs_only")
def test_autocast_asks_for_another_graph():
    learner = make(objective="clip")
    learner.compile()
    for enabled in (False, True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            learner.update(batch_of(learner), 0.0)
    assert len(learner.compiled._graphs) == 2


@pytest.mark.usefixtures("graphs_only")
def test_a_copy_of_a_learner_trains_itself():
    original = make(objective="clip")
    original.compile()
    original.update(batch_of(original), 0.0)
    before = original.parameters.flat.detach().clone()
    other = copy.deepcopy(original)
    other.update(batch_of(other), 0.0)
    assert torch.equal(original.parameters.flat.detach(), before)
    assert not torch.equal(other.parameters.flat.detach(), before)


# --- the compiler itself ----------------------------------------------------------------------------------------------

needs_a_compiler = pytest.mark.skipif(cannot_compile(torch.device("cpu")) is not None, reason="nothing compiles here")


@needs_a_compiler
def test_what_the_compiler_makes_of_the_graph_equals_it():
    require_same(*both_ways(lambda: make(objective="kl_adaptive", minibatch_size=4)))


EACH = [*((name, "gaussian") for name in PRESETS), *(("kl_clip", name) for name in EVERY_FAMILY if name != "gaussian")]


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("objective", "family"), EACH)
def test_what_the_compiler_makes_of_any_graph_equals_it(objective, family):
    def build():
        chosen = Objective(PRESETS[objective], num_action_dims=2)
        return make(EVERY_FAMILY[family], chosen, minibatch_size=4, ent_coef=0.01)

    require_same(*both_ways(build))


@needs_a_compiler
def test_two_learners_do_not_take_each_others_graphs():
    # Graphs without guards are found by the code they were made of, which both share; the objective is in the graph.
    other = make(objective="clip", minibatch_size=4)
    other.compile()
    other.update(batch_of(other), 0.0)
    require_same(*both_ways(lambda: make(objective="kl_fixed", minibatch_size=4)), iterations=1)


@needs_a_compiler
def test_gradients_can_be_taken_by_torch_func_where_autograd_cannot_be_traced(monkeypatch):
    monkeypatch.setattr("ppo_kl.training.learner.gradients_are_traced", lambda: False)
    require_same(*both_ways(lambda: make(objective="kl_adaptive", minibatch_size=4)), iterations=2)


# --- replayed on a GPU ------------------------------------------------------------------------------------------------

CAPTURES: list[Batch] = []


@pytest.fixture
def recorded(monkeypatch):
    """In the place of a CUDA graph: the step on the memory that it was captured with."""
    CAPTURES.clear()

    def capture(step, minibatch, device):
        held = minibatch.copied()
        CAPTURES.append(held)

        def run(minibatch):
            for (_, place), (_, x) in zip(tensors_in(held), tensors_in(minibatch), strict=True):
                place.copy_(x)
            step(held)

        return run

    monkeypatch.setattr(engine, "_capture", capture)


def replaying(learner: Learner) -> Learner:
    learner.replayed = engine.ReplayedStep(torch.device("cpu"))
    return learner


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("batch_for", [batch_of, with_invalid_rows, with_masks], ids=lambda f: f.__name__)
def test_a_replayed_step_is_the_step_for_every_minibatch(batch_for):
    family = FAMILIES["categorical"]
    first, second = (make(family, "kl_adaptive", minibatch_size=4) for _ in range(2))
    for _ in range(3):
        same_numbers(path_of(first, batch_for), path_of(replaying(second), batch_for), 0.0)
    assert len(CAPTURES) == 3  # one for each of `replaying`: 12 minibatches of one shape


@pytest.mark.usefixtures("recorded")
def test_the_first_steps_are_made_as_they_are():
    learner = replaying(make(objective="clip", num_epochs=engine.REPLAY_WARM_UPS))
    learner.update(batch_of(learner), 0.0)
    assert not CAPTURES
    learner.update(batch_of(learner), 0.0)
    assert len(CAPTURES) == 1


@pytest.mark.usefixtures("recorded")
def test_what_is_captured_is_the_compiled_step(monkeypatch):
    learner, compiled = replaying(make(objective="clip")), []
    monkeypatch.setattr(engine, "_compile", lambda step, options, dynamic: lambda *x: compiled.append(1) or step(*x))
    for _ in range(2):
        learner.update(batch_of(learner), 0.0)
    assert (len(CAPTURES), len(compiled)) == (1, 0)
    learner.compile()
    learner.update(batch_of(learner), 0.0)
    assert (len(CAPTURES), len(compiled)) == (2, 4)


@pytest.mark.usefixtures("recorded")
def test_a_setting_changed_by_hand_another_shape_and_autocast_are_not_in_an_old_capture():
    learner, plain = replaying(make(objective="clip")), make(objective="clip")
    for each in (learner, plain):
        for n, clip_eps in ((10, 0.2), (9, 0.2), (10, 1e-3)):
            each.objective.set_clip_eps_(clip_eps)
            each.update(batch_of(each, n), 0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            each.update(batch_of(each), 0.0)
    assert torch.equal(learner.parameters.flat, plain.parameters.flat)
    assert len(CAPTURES) == 3


def test_a_step_that_cannot_be_captured_is_made_as_it_is_and_said_to_be(monkeypatch):
    def broken(step, minibatch, device):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(engine, "_capture", broken)
    learner, plain = replaying(make(objective="clip")), make(objective="clip")
    with pytest.warns(EngineWarning, match=r"runtime\.cuda_graphs.*not permitted when stream is capturing; "):
        learner.update(batch_of(learner), 0.0)
    plain.update(batch_of(plain), 0.0)
    for each in (learner, plain):  # and said once, as every warning is an error here
        each.update(batch_of(each), 0.0)
    assert torch.equal(learner.parameters.flat, plain.parameters.flat)


@pytest.mark.usefixtures("recorded")
def test_beyond_so_many_shapes_steps_are_not_captured():
    learner = replaying(make(objective="clip"))
    for n in range(2, 20):
        learner.update(batch_of(learner, n), 0.0)
    assert len(CAPTURES) == engine.MAX_GRAPHS


@pytest.mark.usefixtures("recorded")
def test_a_copy_of_a_learner_captures_its_own_steps():
    original = replaying(make(objective="clip"))
    original.update(batch_of(original), 0.0)
    before = original.parameters.flat.detach().clone()
    other = copy.deepcopy(original)
    other.update(batch_of(other), 0.0)
    assert len(CAPTURES) == 2
    assert torch.equal(original.parameters.flat.detach(), before)


@pytest.mark.parametrize("build", [make, lambda: recurrent("gru"), tempered], ids=["cpu", "memory", "own network"])
def test_nothing_is_replayed_off_a_gpu_or_what_is_not_always_the_same(build, monkeypatch):
    learner = build()
    learner.replay()
    assert learner.replayed is None


# --- where it cannot be -----------------------------------------------------------------------------------------------


def test_a_step_that_cannot_be_compiled_is_run_eagerly_and_said_to_be(monkeypatch):
    def broken(step, options, dynamic):
        def run(*arguments):
            raise RuntimeError("no such compiler\nand a long traceback")

        return run

    monkeypatch.setattr(engine, "_compile", broken)
    eager, compiled = both_ways(lambda: make(objective="kl_adaptive", minibatch_size=4))
    with pytest.warns(EngineWarning, match=r"runtime\.compile.*RuntimeError: no such compiler; ") as caught:
        compiled.update(batch_of(compiled), 0.0)
    assert len(caught) == 1
    eager.update(batch_of(eager), 0.0)
    torch.testing.assert_close(compiled.parameters.flat, eager.parameters.flat, rtol=0, atol=1e-6)


def test_what_the_step_itself_raises_is_raised(monkeypatch):
    def broken(step, options, dynamic):
        def run(*arguments):
            raise RuntimeError("Dynamo says something about it")

        return run

    monkeypatch.setattr(engine, "_compile", broken)
    learner = make(objective="clip")
    learner.compile()
    with pytest.raises(ValueError, match="one common shape"):
        learner.update(batch_of(learner)._replace(logp_old=torch.zeros(10, 1)), 0.0)


def test_beyond_so_many_shapes_steps_are_eager(monkeypatch):
    graphs = []
    monkeypatch.setattr(engine, "_compile", lambda step, options, dynamic: graphs.append(step) or step)
    learner = make(objective="clip", minibatch_size=64)
    learner.compile()
    for n in range(2, 20):
        learner.update(batch_of(learner, n), 0.0)
    assert len(graphs) == engine.MAX_GRAPHS


def test_a_compiler_s_error_is_told_without_the_command(monkeypatch):
    def broken(step, options, dynamic):
        raise RuntimeError("C++ compile error\n\nCommand:\ng++ a.cpp -O3\n\nOutput:\n/usr/bin/ld: cannot find -lx\n")

    monkeypatch.setattr(engine, "_compile", broken)
    learner = make(objective="clip")
    learner.compile()
    with pytest.warns(EngineWarning, match=r"RuntimeError: /usr/bin/ld: cannot find -lx; "):
        learner.update(batch_of(learner), 0.0)


def test_a_folder_with_a_space_is_named_before_a_compiler_fails_on_it(monkeypatch):
    monkeypatch.setattr(torch, "__file__", "/home/me/my venv/torch/__init__.py")
    monkeypatch.setattr(engine, "cannot_compile", cannot_compile)
    assert cannot_compile(torch.device("cpu")).endswith("of the compiler split: /home/me/my venv/torch")
    learner = make(objective="clip")
    learner.compile()
    with pytest.warns(EngineWarning, match="folder with a space"):
        learner.update(batch_of(learner), 0.0)


def test_without_a_compiler_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no C++ compiler" in cannot_compile(torch.device("cpu"))
    assert cannot_compile(torch.device("cuda")) is None
