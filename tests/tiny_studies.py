"""Studies small enough to be run in a test, and how their results are compared."""

from ppo_kl.config.ablation import AblationConfig

TINY = {
    "total_steps": 512,
    "env.num_envs": 2,
    "training.num_steps": 64,
    "training.num_epochs": 2,
    "policy.hidden_sizes": [8],
    "diagnostics.gradient_every": 2,
}


def tiny(**changes):
    return AblationConfig(**{"name": "tiny", "objectives": ("clip", "kl_adaptive"), "seeds": 2, "set": TINY, **changes})


def numbers_in(result):
    """All that a run's settings decide: without when, where and how long."""
    return {key: x for key, x in result.items() if key not in ("seconds", "end", "hardware", "commit", "versions")}
