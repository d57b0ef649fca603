"""A network of the user's own: it learns, is saved and loaded, and is refused where it breaks the contract."""

import my_nets  # noqa: F401
import numpy as np
import perception  # noqa: F401
import pytest
import shown  # noqa: F401
import torch
from every_family import BOXES, EVERY_FAMILY, vector
from toy_envs import small_agent

from ppo_kl.config.policy import PolicyConfig
from ppo_kl.errors import CheckpointError, ConfigError
from ppo_kl.policies.custom import CustomPolicy, make_policy
from ppo_kl.policies.families import CategoricalFamily
from ppo_kl.training.agent import Agent

OBS = torch.randn(5, 4, generator=torch.Generator().manual_seed(9))


def make(name="Plain", family=EVERY_FAMILY["gaussian"], seed=0, **settings) -> CustomPolicy:
    config = PolicyConfig(module=f"my_nets:{name}", hidden_sizes=(8,), **settings)
    return make_policy((vector(4),), family, config, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", EVERY_FAMILY.values(), ids=EVERY_FAMILY)
@pytest.mark.parametrize("name", ["Plain", "Recurrent"])
def test_it_answers_the_parameters_of_every_family(family, name):
    policy = make(name, family)
    starts = torch.ones(5, dtype=torch.bool) if name == "Recurrent" else None
    out = policy(OBS, policy.initial_state(5), starts)
    assert out.params.shape == (5, family.num_params)
    assert out.value.shape == (5,)
    assert family.build(out.params).log_prob(family.mode(out.params)).isfinite().all()


def test_bounds_and_start_of_the_scale_stay_ours():
    policy = make(family=BOXES["gaussian"], log_std_init=-1.0, log_std_max=0.5)
    assert policy(OBS).params[:, 2:].eq(-1.0).all()
    with torch.no_grad():
        policy.scale.fill_(100.0)
    assert policy(OBS).params[:, 2:].eq(0.5).all()


def test_a_scale_that_depends_on_the_state_begins_where_it_is_told_to():
    # The network's own outputs are added to it: of a network that answers 0, the scale is the one asked for.
    policy = make(family=BOXES["gaussian"], log_std_init=-2.0, scale_depends_on_state=True)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.zero_()
    assert policy(OBS).params[:, 2:].eq(-2.0).all()


@pytest.mark.parametrize("name", ["Plain", "Lazy"])
def test_the_seed_decides_how_it_begins_and_torchs_own_random_stream_stays(name):
    before = torch.get_rng_state()
    first, again, other = (make(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["module.actor.weight"], other["module.actor.weight"])


def test_sequences_are_answered_step_by_step():
    policy = make("Recurrent")
    obs = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))
    whole = policy(obs, policy.initial_state(3))
    state, params = policy.initial_state(3), []
    for t in range(6):
        out = policy(obs[:, t], state, torch.zeros(3, dtype=torch.bool))
        state, _ = out.state, params.append(out.params)
    torch.testing.assert_close(whole.params.view(3, 6, -1), torch.stack(params, 1))
    torch.testing.assert_close(whole.state[0], state[0])


def test_its_critic_is_known_by_name():
    agent = small_agent(policy__module="my_nets:Plain", training__critic_lr=1e-2)
    assert agent.learner.parameters.num_actor == sum(
        x.numel() for name, x in agent.policy.named_parameters() if name.startswith("module.actor")
    )


@pytest.mark.parametrize(
    ("env", "name"), [("CartPole-v1", "Plain"), ("Pendulum-v1", "Plain"), ("toy/Recall-v0", "Recurrent")]
)
def test_an_agent_learns_with_it_and_comes_back_from_its_checkpoint(tmp_path, env, name):
    agent = small_agent(env, policy__module=f"my_nets:{name}")
    before = {key: x.clone() for key, x in agent.policy.state_dict().items()}
    metrics = [agent.iterate() for _ in range(2)]
    assert all(m["kl/before_update"] <= 1e-6 and m["kl/forward"] > 0 for m in metrics)
    assert all((x != before[key]).any() for key, x in agent.policy.state_dict().items())
    agent.save(tmp_path / "agent.pt")
    again = Agent.load(tmp_path / "agent.pt")
    assert again.evaluate(2).returns == agent.evaluate(2).returns
    again.iterate()
    if name == "Recurrent":
        with pytest.raises(ValueError, match="new_memory"):
            agent.act(np.zeros(2, np.float32))
        assert agent.act(np.zeros(2, np.float32), memory=agent.new_memory()) in (0, 1)


def test_its_buffers_come_back_from_a_checkpoint(tmp_path):
    agent = small_agent(policy__module="my_nets:Buffered")
    torch.nn.init.normal_(agent.policy.module.projection, generator=torch.Generator().manual_seed(5))
    agent.iterate()
    agent.save(tmp_path / "agent.pt")
    again = Agent.load(tmp_path / "agent.pt")
    assert torch.equal(again.policy.module.projection, agent.policy.module.projection)
    assert torch.equal(again.policy(OBS).params, agent.policy(OBS).params)
    other = small_agent(policy__module="my_nets:Plain")
    with pytest.raises(CheckpointError, match="nothing was loaded"):
        other.load_state_dict(agent.state_dict())


def test_it_sees_the_parts_of_an_observation_by_name():
    agent = small_agent("ShowsTuple", policy__module="my_nets:Parts")
    assert all(np.isfinite(value) for value in agent.iterate().values())


def test_it_is_slow_to_forget():
    settings = {"training.lr": 1e-2, "training.num_steps": 64, "training.minibatch_size": 128, "env.num_envs": 8}
    overrides = {
        **settings,
        "policy.module": "my_nets:Recurrent",
        "policy.hidden_sizes": (16,),
        "runtime.device": "cpu",
    }
    assert Agent("toy/Recall-v0", "clip", seed=0, overrides=overrides).learn(10_000).evaluate(50).mean > 0.95


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("Wide", r"outputs of 3 observations has shape \(3, 3\), expected \(3, 2\)"),
        ("Column", r"value of 3 observations has shape \(3, 1\), expected \(3,\)"),
        ("Bare", r"expected a tuple \(outputs, value\)"),
        ("Forgetful", r"expected a tuple \(outputs, value, state\)"),
        ("Dropout", "differently twice"),
        ("DropoutOfValue", "differently twice"),
        ("Batch", "differently beside others"),
        ("Frozen", r"parameter actor\.weight requires no gradient"),
        ("Double", r"parameter actor\.weight has dtype torch\.float64"),
        ("Infinite", "not finite"),
        ("Raises", "RuntimeError: no such layer"),
        ("Unmakable", r"raised TypeError.*num_outputs|raised TypeError.*positional"),
        ("NOT_A_CLASS", r"expected a subclass of torch.*Module, got 3"),
        ("Missing", r"expected a subclass of torch.*Module, got None"),
    ],
)
def test_what_breaks_the_contract_is_refused_at_construction_by_name(name, complaint):
    with pytest.raises(ConfigError, match=complaint) as error:
        make(name, CategoricalFamily(2))
    assert f"policy.module='my_nets:{name}'" in str(error.value)


def test_a_module_that_was_not_imported_is_refused():
    with pytest.raises(ConfigError, match=r"'nowhere' is not imported.*--plugin nowhere"):
        make_policy((vector(4),), CategoricalFamily(2), PolicyConfig(module="nowhere:Net"), torch.Generator())


@pytest.mark.parametrize("module", ["Net", ":Net", "my_nets:"])
def test_a_name_without_module_and_class_is_refused(module):
    with pytest.raises(ConfigError, match=r"package\.module:Class"):
        PolicyConfig(module=module)


@pytest.mark.parametrize("setting", [{"trunk": "shared"}, {"memory": "gru"}, {"image_encoder": "impala"}])
def test_settings_of_our_networks_have_no_place_beside_it(setting):
    with pytest.raises(ConfigError, match="would be ignored"):
        PolicyConfig(module="my_nets:Plain", **setting)
