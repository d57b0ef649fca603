"""One of each family of action distributions, small enough to try everything on."""

from ppo_kl.observations import Part
from ppo_kl.policies.box_families import BetaFamily, FullGaussianFamily, GaussianFamily, TanhGaussianFamily
from ppo_kl.policies.families import BernoulliFamily, CategoricalFamily, JointFamily, MultiCategoricalFamily

BOX = {"low": (-1.0, 0.0), "high": (1.0, 10.0), "shape": (2,)}
BOXES = {
    "gaussian": GaussianFamily(**BOX),
    "tanh_gaussian": TanhGaussianFamily(**BOX),
    "beta": BetaFamily(**BOX),
    "full_gaussian": FullGaussianFamily((-1.0,) * 3, (1.0,) * 3, (3,)),
}
INNER = JointFamily(((0, BernoulliFamily((2,))), (1, BetaFamily((0.0,), (1.0,), (1,)))))
EVERY_FAMILY = {
    "categorical": CategoricalFamily(4),
    "multi_categorical": MultiCategoricalFamily((2, 4, 3), (0, 0, 0)),
    "bernoulli": BernoulliFamily((3,)),
    **BOXES,
    "joint": JointFamily((("arm", BOXES["gaussian"]), ("more", INNER), ("turn", CategoricalFamily(3)))),
}


def vector(size: int) -> Part:
    """An observation of `size` numbers."""
    return Part((), "vector", (size,))
