# # A tour of the KL divergence in PyTorch
#
# What a newcomer needs to trust a KL: what it is, what PyTorch's functions take and give, why two frameworks print
# two numbers, and where float32 breaks. Every block below was executed; under it stands what it printed. The page is
# generated from `scripts/kl_tour.py`, which needs torch and ppo_kl alone: run it, change it.

# ## What it is
#
# KL(p ‖ q) = Σ p(x) log(p(x) / q(x)): how many nats (natural logarithm) or bits (base 2) one loses on average by
# describing draws from p as if they came from q. `torch.distributions.kl_divergence(p, q)` computes it in closed
# form, in nats.

import math

import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Independent,
    MultivariateNormal,
    Normal,
    kl_divergence,
)
from torch.nn import functional as F

from ppo_kl.objectives import StableCategorical, k1, k2, k3, policy_kl

p = torch.tensor([0.5, 0.25, 0.25])
q = torch.tensor([0.2, 0.3, 0.5])
by_hand = 0.5 * math.log(0.5 / 0.2) + 0.25 * math.log(0.25 / 0.3) + 0.25 * math.log(0.25 / 0.5)
kl = kl_divergence(Categorical(p), Categorical(q)).item()
print(f"by hand           {by_hand:.6f} nats")
print(f"kl_divergence     {kl:.6f} nats = {kl / math.log(2):.6f} bits")

# ## It is not a distance: the order matters
#
# PPO's penalty is the forward KL(π_old ‖ π_new): it weighs every action by how often the *old* policy took it, so the
# new one must not become blind to any of them. The reverse KL(π_new ‖ π_old) weighs by the new policy: it forbids it
# to go where the old one never went. Here the new policy all but drops an action that the old one took half of the
# time:

old, new = Categorical(torch.tensor([0.5, 0.5])), Categorical(torch.tensor([0.999, 0.001]))
print(f"forward KL(old ‖ new) = {kl_divergence(old, new):.3f}")
print(f"reverse KL(new ‖ old) = {kl_divergence(new, old):.3f}   (at most log 2 = {math.log(2):.3f} here)")

# ## It is never negative
#
# 0 for equal distributions, positive for all others (Gibbs' inequality). What can be negative is an *estimate* of it,
# and what rounding leaves of a very small one:

torch.manual_seed(0)
pairs = torch.randn(2, 100_000, 6)
near = pairs[0] + 1e-4 * pairs[1]
apart, close, exact = (
    kl_divergence(Categorical(logits=x), Categorical(logits=y)).min()
    for x, y in (pairs, (pairs[0], near), (pairs[0].double(), near.double()))
)
print(f"smallest of 100,000 random pairs     {apart:.4f}")
print(f"… of pairs 1e-4 apart, in float32   {close:.0e}")
print(f"… the same in float64                {exact:.0e}")

# ## KL = cross-entropy − entropy, so their gradients are equal
#
# The entropy of p does not depend on q. Minimising a cross-entropy *is* minimising a KL; only the number printed
# differs.

logits = torch.tensor([0.2, -0.4, 1.0], requires_grad=True)
cross_entropy = F.cross_entropy(logits[None], p[None])
kl = kl_divergence(Categorical(p), Categorical(logits=logits))
print(f"cross-entropy − entropy = {cross_entropy - Categorical(p).entropy():.6f},  KL = {kl:.6f}")
print("gradient of the cross-entropy", torch.autograd.grad(cross_entropy, logits)[0].tolist())
print("gradient of the KL           ", torch.autograd.grad(kl, logits)[0].tolist())

# ## Fitting by minimising a KL: the space worms
#
# The well-known example: the numbers of teeth, 0 to 10, counted on the worms of a far planet. Is a uniform
# distribution the better summary, or a binomial one? Against the uniform on 11 values the KL is log₂ 11 − H(worms),
# in bits:

worms = torch.tensor([0.02, 0.03, 0.05, 0.14, 0.16, 0.15, 0.12, 0.08, 0.1, 0.08, 0.07], dtype=torch.float64)
teeth = torch.arange(11.0, dtype=torch.float64)
uniform = torch.full((11,), 1 / 11, dtype=torch.float64)
bits = kl_divergence(Categorical(worms), Categorical(uniform)).item() / math.log(2)
entropy = Categorical(worms).entropy().item() / math.log(2)
print(f"KL(worms ‖ uniform) = {bits:.6f} bits")
print(f"log₂ 11 − H         = {math.log2(11):.6f} − {entropy:.6f} = {math.log2(11) - entropy:.6f} bits")

# Gradient descent on the KL to a binomial finds the one with the same mean, which theory promises for this family:

logit = torch.zeros((), dtype=torch.float64, requires_grad=True)
optimizer = torch.optim.SGD([logit], lr=0.2)
for _ in range(200):
    log_q = Binomial(10, logits=logit).log_prob(teeth)
    loss = (worms * (worms.log() - log_q)).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"fitted probability {logit.sigmoid():.6f};  mean number of teeth / 10 = {(worms * teeth).sum() / 10:.6f}")
print(f"KL(worms ‖ binomial) = {loss.item() / math.log(2):.4f} bits: the uniform is the better summary of these worms")

# ## `F.kl_div` and `nn.KLDivLoss`: four traps
#
# `F.kl_div(input, target)` is KL(**target** ‖ input): the order is the other way round. `input` must be
# *log*-probabilities, `target` probabilities (or logarithms too, with `log_target=True`). And the default
# `reduction="mean"` divides by the number of *elements*; the KL of a batch is `"batchmean"`.

P, Q = torch.stack([p, q]), torch.stack([q, torch.tensor([0.1, 0.2, 0.7])])
mean = {"reduction": "batchmean"}
print(f"mean over the batch of KL(P ‖ Q)              {kl_divergence(Categorical(P), Categorical(Q)).mean():.6f}")
print(f"F.kl_div(Q.log(), P)                          {F.kl_div(Q.log(), P, **mean):.6f}")
print(f"F.kl_div(Q.log(), P.log(), log_target=True)   {F.kl_div(Q.log(), P.log(), log_target=True, **mean):.6f}")
print(f"nn.KLDivLoss()(Q.log(), P)                    {torch.nn.KLDivLoss(**mean)(Q.log(), P):.6f}")
print(f"trap 1, the order:     kl_div(P.log(), Q)     {F.kl_div(P.log(), Q, **mean):.6f}")
print(f"trap 2, no logarithm:  kl_div(Q, P)          {F.kl_div(Q, P, **mean):.6f}")
print(f"trap 3, 'mean':        divided by 2 · 3       {F.kl_div(Q.log(), P, reduction='none').mean():.6f}")
print(f"trap 4, log target, but no log_target=True    {F.kl_div(Q.log(), P.log(), **mean):.6f}")

# ## From logits
#
# Networks give logits. Going through probabilities and back throws away digits; `log_softmax` keeps them:


def kl_categorical(p_logits, q_logits):
    """KL(p ‖ q) of Categoricals, `[*, n]` -> `[*]`, nats."""
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


a, b = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([1.0, 1.0, -1.0])
torchs = kl_divergence(Categorical(logits=a), Categorical(logits=b))
print(f"kl_categorical {kl_categorical(a, b):.6f}, kl_divergence {torchs:.6f}")

# With an action mask, −inf in both, `log_p - log_q` is NaN; `ppo_kl.objectives.policy_kl` leaves such terms out.

# ## One number for each sample: `Independent`
#
# A Normal over 3 action dimensions has a KL for each *dimension*. Its mean is three times too small a KL for a
# policy; `Independent(…, 1)` says that the last dimension belongs to one action, and sums:

means, new_means, std = torch.zeros(4, 3), torch.full((4, 3), 0.1), torch.ones(4, 3)
loose = kl_divergence(Normal(means, std), Normal(new_means, std))
whole = kl_divergence(Independent(Normal(means, std), 1), Independent(Normal(new_means, std), 1))
print(f"without: shape {tuple(loose.shape)}, mean {loose.mean():.4f}")
print(f"with:    shape {tuple(whole.shape)},   mean {whole.mean():.4f}")

# `ppo_kl.objectives.policy_kl` refuses the first:

try:
    policy_kl(Normal(means, std), Normal(new_means, std))
except ValueError as refusal:
    print(str(refusal).replace("; ", ";\n"))

# ## Why another framework prints another number
#
# Keras' `kl_divergence(y_true, y_pred)` clips both to 1e-7 first, so an impossible event costs about 16 nats instead
# of infinitely many; SciPy's `entropy(p, q, base=2)` normalises its arguments and answers in the base asked for; and
# whoever swaps the arguments gets the other direction.

hard_p, hard_q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.0, 0.5])
clipped_p, clipped_q = (x.clamp(1e-7, 1) for x in (hard_p, hard_q))
forward, backward = (kl_divergence(Categorical(x), Categorical(y)).item() for x, y in ((p, q), (q, p)))
print(f"an impossible event, exact              {kl_divergence(Categorical(hard_p), Categorical(hard_q)):.4f}")
print(f"… clipped to 1e-7 as in Keras           {(clipped_p * (clipped_p / clipped_q).log()).sum():.4f}")
print(f"p and q from above, nats                {forward:.4f}")
print(f"… in base 2                             {forward / math.log(2):.4f}")
print(f"… arguments swapped                     {backward:.4f}")

# ## As a loss: where the gradient goes
#
# `kl_divergence` is differentiable in the parameters of both distributions. The snippet that is passed around forgets
# to ask for gradients, and fails:

loc, covariance = torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.5], [0.5, 1.0]])
standard = MultivariateNormal(torch.zeros(2), torch.eye(2))
try:
    kl_divergence(standard, MultivariateNormal(loc, covariance)).backward()
except RuntimeError as error:
    print("RuntimeError:", str(error).splitlines()[0])

# With `requires_grad` it works, and agrees with the formula: the derivative of KL(N(0, I) ‖ N(μ, Σ)) in μ is Σ⁻¹ μ.

loc.requires_grad_()
tril = torch.linalg.cholesky(covariance).requires_grad_()
kl_divergence(standard, MultivariateNormal(loc, scale_tril=tril)).backward()
print("autograd in μ ", [round(x, 6) for x in loc.grad.tolist()])
print("Σ⁻¹ μ         ", [round(x, 6) for x in torch.linalg.solve(covariance, loc.detach()).tolist()])
print("in L          ", [[round(x, 4) for x in row] for row in tril.grad.tolist()])

# In PPO the old policy is data: build it from stored parameters, which have no gradient, or detach them.

# ## Estimates from samples: k1, k2, k3
#
# Where only log-probabilities of the actions are at hand, with log r = log π_new(a) − log π_old(a) and a ~ π_old: k1
# = −log r, k2 = ½ (log r)², k3 = (r − 1) − log r. k1 and k3 are unbiased for KL(π_old ‖ π_new); k1 is often negative;
# k2 is biased. The exact value has no noise, so λ and early stops should use that.

torch.manual_seed(0)
old, new = Normal(0.0, 1.0), Normal(0.15, 1.0)
actions = old.sample((1_000, 64))  # a thousand minibatches of 64
log_ratio = new.log_prob(actions) - old.log_prob(actions)
print(f"exact  {kl_divergence(old, new):.5f}")
for estimator in (k1, k2, k3):
    means = estimator(log_ratio).mean(-1)
    print(
        f"{estimator.__name__}     {means.mean():.5f}   SD over minibatches {means.std():.5f}   "
        f"negative in {(means < 0).float().mean():.0%} of them"
    )

# ## Where float32 breaks, and what we do
#
# `policy_kl` first makes torch's distributions into ones of ours (`stabilise`), whose KL is registered with
# `register_kl` and computed from log-softmax, log-sigmoid or in float64, whichever the family needs. Value and gradient
# in the new policy's parameter, against float64 or the closed form:


def measured(make, old, new, true):
    """KL by torch and by us in float32, and |gradient| in the new parameter; the true KL as given."""
    answers = []
    for kl in (kl_divergence, policy_kl):
        x = torch.tensor([new], dtype=torch.float32, requires_grad=True)
        value = kl(make(torch.tensor([old], dtype=torch.float32)), make(x))
        answers.append((value.item(), torch.autograd.grad(value.sum(), x)[0].abs().max().item()))
    return true, answers


def categorical(x):
    return Categorical(logits=torch.stack([x, torch.zeros_like(x)], -1))


def bernoulli(x):
    return Bernoulli(logits=x)


def normal(x):
    return Normal(x, torch.ones_like(x))


def scale(x):
    return Normal(torch.zeros_like(x), x.exp())


def full_covariance(x):
    """Two dimensions, whose scales and correlation move with x."""
    diagonal, below = (1 + x)[..., None] * torch.eye(2), x[..., None] * torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    return MultivariateNormal(torch.zeros(len(x), 2), scale_tril=diagonal + below)


def beta(concentration):
    return lambda x: Beta(torch.full_like(x, concentration), concentration + x)


def kl_beta(a, b, c, d):
    """In float64, where lgamma has the digits."""
    p, q = (Beta(*(torch.tensor(x, dtype=torch.float64) for x in pair)) for pair in ((a, b), (c, d)))
    return kl_divergence(p, q).item()


def half_gap(gap):
    """KL(½, ½ ‖ σ(gap), σ(−gap)) = ½ (softplus(gap) + softplus(−gap)) − log 2."""
    return 0.5 * (gap + 2 * math.log1p(math.exp(-gap))) - math.log(2)


def kl_bernoulli(a, b):
    """Of positive logits, in float64."""
    unlikely, sp_a, sp_b = 1 / (1 + math.exp(a)), math.log1p(math.exp(-a)), math.log1p(math.exp(-b))
    return (1 - unlikely) * (sp_b - sp_a) + unlikely * (b + sp_b - a - sp_a)


CASES = {
    **{f"Categorical, gap 0 against {x:g}": (categorical, 0.0, x, half_gap(x)) for x in (50.0, 104.0, 200.0, 1e4)},
    **{
        f"Bernoulli, logit 0 against {x:g}": (bernoulli, 0.0, x, half_gap(abs(x))) for x in (17.0, -17.0, 104.0, -104.0)
    },
    "Bernoulli, logit 17 against 18": (bernoulli, 17.0, 18.0, kl_bernoulli(17.0, 18.0)),
    "Normal, mean 0 against 1e-4": (normal, 0.0, 1e-4, 5e-9),
    "Normal, log σ 0 against 1e-3": (scale, 0.0, 1e-3, 0.5 * (math.expm1(-2e-3) + 2e-3)),
    "Normal, log σ −20 against −19.9": (scale, -20.0, -19.9, 0.5 * (math.expm1(-0.2) + 0.2)),
    "Normal, log σ 0 against −20": (scale, 0.0, -20.0, 0.5 * (math.expm1(40.0) - 40.0)),
    # M = L_q⁻¹ L_p has 1/(1 + x) on its diagonal and −x/(1 + x)² below: KL = 2 · ½(m² − 1 − log m²) + ½ (x/(1 + x)²)²
    "Full covariance, a step of 1e-3": (
        full_covariance,
        0.0,
        1e-3,
        math.expm1(-2 * math.log1p(1e-3)) + 2 * math.log1p(1e-3) + 0.5 * (1e-3 / (1 + 1e-3) ** 2) ** 2,
    ),
    "Beta(1e3, 1e3) against (1e3, 1001)": (beta(1e3), 0.0, 1.0, kl_beta(1e3, 1e3, 1e3, 1e3 + 1)),
    "Beta(1e5, 1e5) against (1e5, 1e5 + 10)": (beta(1e5), 0.0, 10.0, kl_beta(1e5, 1e5, 1e5, 1e5 + 10)),
}
print(f"{'':38} {'true':>10} {'torch':>11} {'gradient':>9} {'ours':>10} {'gradient':>9} {'our error':>9}")
for case, arguments in CASES.items():
    true, ((torch_kl, torch_slope), (our_kl, our_slope)) = measured(*arguments)
    error = abs(our_kl / true - 1)
    print(f"{case:38} {true:10.5g} {torch_kl:11.5g} {torch_slope:9.2g} {our_kl:10.5g} {our_slope:9.2g} {error:9.0e}")

# An infinite KL comes with a gradient of zero: the loss looks dead and nothing pulls the policy back. In half
# precision the same happens far earlier, and a small step drowns in rounding. Our families build `StableCategorical`
# and its like from the parameters themselves, which it widens to float32; a torch Categorical has rounded them before
# we see it.

x, y = (torch.tensor([[0.0, 0.5, 1.0]]) + step for step in (0.0, torch.tensor([[0.0, 0.01, -0.01]])))
for name, make in (
    ("true", lambda z: Categorical(logits=z.bfloat16().double())),
    ("torch", lambda z: Categorical(logits=z.bfloat16())),
    ("ours", lambda z: StableCategorical(logits=z.bfloat16())),
):
    print(f"bfloat16 logits, a step of 0.01: {name:5} {kl_divergence(make(x), make(y)).item():.4e}")
