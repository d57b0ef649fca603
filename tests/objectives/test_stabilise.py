"""Anybody's torch distribution with our numerics: the same distribution, and a KL that is right."""

import math

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Independent,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    StudentT,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)

from ppo_kl.objectives import (
    Joint,
    StableBernoulli,
    StableBeta,
    StableCategorical,
    StableMultivariateNormal,
    StableNormal,
    StableOneHotCategorical,
    TanhNormal,
    policy_kl,
    stabilise,
)

INF = float("inf")
PROBS = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
POSITIVE = 0.5 + PROBS
COVARIANCE = torch.eye(3) + 0.5 * torch.ones(3, 3)

FOREIGN = {
    "categorical logits": (lambda **v: Categorical(logits=PROBS, **v), StableCategorical),
    "categorical probs": (lambda **v: Categorical(PROBS, **v), StableCategorical),
    "one-hot logits": (lambda **v: OneHotCategorical(logits=PROBS, **v), StableOneHotCategorical),
    "one-hot probs": (lambda **v: OneHotCategorical(PROBS, **v), StableOneHotCategorical),
    "bernoulli logits": (lambda **v: Bernoulli(logits=PROBS, **v), StableBernoulli),
    "bernoulli probs": (lambda **v: Bernoulli(PROBS, **v), StableBernoulli),
    "normal": (lambda **v: Normal(PROBS, POSITIVE, **v), StableNormal),
    "normal of floats": (lambda **v: Normal(0.5, 2.0, **v), StableNormal),
    "beta": (lambda **v: Beta(PROBS, POSITIVE, **v), StableBeta),
    "full covariance": (lambda **v: MultivariateNormal(PROBS, COVARIANCE, **v), StableMultivariateNormal),
    "full precision": (
        lambda **v: MultivariateNormal(PROBS, precision_matrix=COVARIANCE, **v),
        StableMultivariateNormal,
    ),
    "independent": (lambda **v: Independent(Normal(PROBS, POSITIVE, **v), 1, **v), Independent),
    "twice independent": (lambda **v: Independent(Independent(Bernoulli(PROBS, **v), 1, **v), 1, **v), Independent),
    "transformed": (
        lambda **v: TransformedDistribution(Normal(PROBS, POSITIVE, **v), [TanhTransform(cache_size=1)], **v),
        TransformedDistribution,
    ),
    "independent of transformed": (
        lambda **v: Independent(TransformedDistribution(Beta(PROBS, POSITIVE, **v), [], **v), 1, **v),
        Independent,
    ),
}
foreign = pytest.mark.parametrize(("make", "kind"), FOREIGN.values(), ids=FOREIGN)


def same_draws(*dists):
    for dist in dists:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            yield dist.sample((50,))


def innermost(dist):
    return innermost(dist.base_dist) if hasattr(dist, "base_dist") else dist


@foreign
def test_it_is_the_same_distribution(make, kind):
    dist = make()
    stable = stabilise(dist)
    assert type(stable) is kind
    assert "ppo_kl" in type(innermost(stable)).__module__
    assert (stable.batch_shape, stable.event_shape) == (dist.batch_shape, dist.event_shape)
    ours, theirs = same_draws(stable, dist)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(stable.log_prob(theirs), dist.log_prob(theirs), rtol=1e-5, atol=1e-5)


@foreign
@pytest.mark.parametrize("validate", [True, False])
def test_it_validates_what_the_other_validates(make, kind, validate):
    stable = stabilise(make(validate_args=validate))
    assert stable._validate_args is validate
    assert innermost(stable)._validate_args is validate


@pytest.mark.parametrize("kind", [Categorical, OneHotCategorical])
def test_an_action_that_is_lost_is_an_error_only_where_arguments_are_validated(kind):
    old, new = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
    with pytest.raises(ValueError, match="row 0, action 1"):
        policy_kl(kind(old), kind(new, validate_args=False))
    assert policy_kl(*(kind(probs, validate_args=False) for probs in (old, new))).item() == INF


@foreign
def test_once_is_enough(make, kind):
    stable = stabilise(make())
    assert stabilise(stable) is stable


class OwnNormal(Normal):
    """Of a user, with perhaps a KL of its own."""


@pytest.mark.parametrize(
    "dist",
    [
        StudentT(torch.ones(3)),
        OwnNormal(torch.zeros(3), torch.ones(3)),
        Independent(OwnNormal(torch.zeros(3), torch.ones(3)), 1),
        TransformedDistribution(StudentT(torch.ones(3)), [TanhTransform()]),
        StableNormal(torch.zeros(3), torch.ones(3)),
        TanhNormal(torch.zeros(3), torch.ones(3)),
        Joint([StableCategorical(logits=torch.zeros(3, 2))]),
    ],
    ids=lambda dist: type(dist).__name__,
)
def test_what_it_does_not_know_comes_back_as_it_is(dist):
    assert stabilise(dist) is dist


@pytest.mark.parametrize("kind", [Categorical, OneHotCategorical])
@pytest.mark.parametrize("form", ["logits", "probs"])
def test_an_impossible_action_stays_impossible_and_has_no_gradient(kind, form):
    given = torch.tensor([[0.5, 0.0, 0.5]])
    given = (given.log() if form == "logits" else given).requires_grad_()
    old, new = torch.tensor([[0.25, 0.0, 0.75]]), kind(**{form: given})
    kl = policy_kl(kind(probs=old), new)
    # ¼ log(¼ / ½) + ¾ log(¾ / ½)
    assert kl.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-5)
    (slope,) = torch.autograd.grad(kl.sum(), given)
    assert slope.isfinite().all()
    # torch divides probabilities by their sum, in which this one has a part that cancels but for rounding.
    assert abs(slope[0, 1].item()) <= (0.0 if form == "logits" else 1e-6)
    assert slope[0, 0] != 0
    assert stabilise(new).probs.tolist() == [[0.5, 0.0, 0.5]]


def test_certain_bernoullis_stay_certain_and_have_no_gradient():
    probs = torch.tensor([0.0, 1.0, 0.25], requires_grad=True)
    stable = stabilise(Bernoulli(probs))
    assert stable.logits.tolist()[:2] == [-INF, INF]
    kl = kl_divergence(stable, stabilise(Bernoulli(torch.tensor([0.0, 1.0, 0.5]))))
    # ¼ log(¼ / ½) + ¾ log(¾ / ½)
    assert kl.tolist() == pytest.approx([0.0, 0.0, 0.25 * math.log(0.5) + 0.75 * math.log(1.5)])
    (slope,) = torch.autograd.grad(kl.sum(), probs)
    # d/dp of p log p/q + (1 − p) log (1 − p)/(1 − q): log(p / (1 − p)) for q = ½
    assert slope.tolist() == pytest.approx([0.0, 0.0, -math.log(3)])


@pytest.mark.parametrize("kind", [Categorical, Bernoulli])
def test_probabilities_that_are_nan_stay_nan(kind):
    probs = torch.tensor([[math.nan, 0.5]])
    pi = kind(probs, validate_args=False)
    assert kl_divergence(stabilise(pi), stabilise(pi)).isnan().any()


def test_gradients_reach_the_original_parameters():
    mean, log_std, logits = (torch.full((2, 3), 0.5, requires_grad=True) for _ in range(3))
    full = torch.diag_embed(log_std.exp()) + torch.full((3, 3), 0.1).tril(-1)
    stables = [
        stabilise(dist)
        for dist in (
            Independent(Normal(mean, log_std.exp()), 1),
            Independent(Beta(log_std.exp(), mean.exp()), 1),
            MultivariateNormal(mean, scale_tril=full),
            Independent(Bernoulli(logits=logits), 1),
            Categorical(probs=logits.softmax(-1)),
        )
    ]
    entropy = sum((stable.entropy() + kl_divergence(stable, stable)).sum() for stable in stables)
    slopes = torch.autograd.grad(entropy, (mean, log_std, logits))
    assert all(slope.isfinite().all() for slope in slopes)
    assert all((slope != 0).any() for slope in slopes)


@pytest.mark.parametrize(
    ("old", "new", "true"),
    [
        (Categorical(logits=torch.zeros(1, 2)), Categorical(logits=torch.tensor([[104.0, 0.0]])), 52 - math.log(2)),
        (Bernoulli(torch.tensor([0.5])), Bernoulli(logits=torch.tensor([50.0])), 25 - math.log(2)),
        (Normal(torch.zeros(1), torch.ones(1)), Normal(torch.tensor([1e-4]), torch.ones(1)), 5e-9),
        (
            Beta(torch.tensor([1e5]), torch.tensor([1e5])),
            Beta(torch.tensor([1e5]), torch.tensor([100010.0])),
            2.49989e-4,
        ),
        (
            TransformedDistribution(Normal(torch.zeros(1), torch.ones(1)), [TanhTransform()]),
            TransformedDistribution(Normal(torch.tensor([1e-4]), torch.ones(1)), [TanhTransform()]),
            5e-9,
        ),
        (
            Categorical(torch.tensor([[0.5, 0.5]])),
            StableCategorical(logits=torch.tensor([[104.0, 0.0]])),
            52 - math.log(2),
        ),
    ],
    ids=["categorical", "bernoulli", "normal", "beta", "transformed", "theirs and ours"],
)
def test_policy_kl_is_right_for_torchs_own(old, new, true):
    assert policy_kl(old, new).item() == pytest.approx(true, rel=1e-3)


# --- subclasses, parts, and what torch forgets ------------------------------------------------------------------------


class TheirCategorical(Categorical):
    """As other libraries have them, with a log-probability of their own."""

    def log_prob(self, value):
        return super().log_prob(value) + 1


def test_a_subclass_without_a_kl_of_its_own_gets_a_stable_one_but_comes_back_as_it_is():
    # ½ (softplus(200) + softplus(−200)) − log 2 = 100 − log 2; torch answers inf with a zero gradient.
    old, new = (TheirCategorical(logits=torch.tensor([[gap, 0.0]], requires_grad=True)) for gap in (0.0, 200.0))
    assert stabilise(new) is new
    kl = policy_kl(old, new)
    assert kl.item() == pytest.approx(100 - math.log(2))
    assert policy_kl(StableCategorical(logits=torch.zeros(1, 2)), new).item() == pytest.approx(100 - math.log(2))
    nested = policy_kl(*(Independent(TheirCategorical(logits=x.logits[:, None]), 1) for x in (old, new)))
    assert nested.item() == pytest.approx(100 - math.log(2))


def test_a_subclass_with_a_kl_of_its_own_keeps_it():
    class Own(Categorical):
        pass

    torch.distributions.register_kl(Own, Own)(lambda p, q: torch.full(p.batch_shape, 7.0))
    assert policy_kl(Own(logits=torch.zeros(1, 2)), Own(logits=torch.zeros(1, 2))).item() == 7.0


def test_the_parts_of_a_joint_are_made_stable():
    old, new = (Joint([Categorical(logits=torch.tensor([[gap, 0.0]]))]) for gap in (0.0, 200.0))
    assert policy_kl(old, new).item() == pytest.approx(100 - math.log(2))
    stable = Joint([StableCategorical(logits=torch.zeros(1, 2))])
    assert stabilise(stable) is stable


@pytest.mark.parametrize("looked_at", [True, False])
def test_what_is_impossible_stays_so_after_torch_has_expanded_it(looked_at):
    # Once logits were asked for, torch's expand takes those for the parameter, in which a 0 has become 1e-7.
    categorical = Categorical(probs=torch.tensor([[0.5, 0.0, 0.5]]))
    bernoulli = Bernoulli(probs=torch.tensor([1.0, 0.0, 0.5]))
    if looked_at:
        categorical.log_prob(torch.tensor([0]))
        bernoulli.entropy()
    assert stabilise(categorical.expand((2,))).logits[1].tolist() == pytest.approx([-math.log(2), -INF, -math.log(2)])
    assert stabilise(bernoulli.expand((2, 3))).logits[1].tolist() == [INF, -INF, 0.0]


def test_what_is_only_unlikely_does_not_become_impossible():
    # Here it is the probabilities that were computed, and rounded to 0 and 1.
    categorical = Categorical(logits=torch.tensor([[0.0, -200.0]]))
    bernoulli = Bernoulli(logits=torch.tensor([17.0, -200.0, 40.0]))
    for dist in (categorical, bernoulli):
        assert (dist.probs == 0).any()
    assert stabilise(categorical.expand((1,))).logits.tolist() == [[0.0, -200.0]]
    assert stabilise(bernoulli.expand((1, 3))).logits.tolist() == [[17.0, -200.0, 40.0]]
