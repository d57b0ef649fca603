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


def made_up(arm, env, seed, score, *, kl=0.01, target=None, **changes):
    """The result of a run that never was: it begins at 0 and climbs to its score."""
    climb = [score * (i + 1) / 50 for i in range(50)]
    known = {"mean": kl, "median": kl, "p95": 2 * kl, "tracking_error": None if target is None else 0.1}
    return {
        "id": f"{arm}-{env}-{seed}",
        "arm": arm,
        "env": env,
        "env_id": env,
        "objective": arm,
        "seed": seed,
        "settings": {"seed": seed},
        "steps": 1000,
        "seconds": 1.0,
        "return": score,
        "initial": [-1.0, 1.0],
        "evaluated": [score],
        "curve": {"steps": [20.0 * (i + 1) for i in range(50)], "return": [None, *climb[1:]], "kl": [kl] * 50},
        "kl": {**known, "target": target, "lambda": 1.0, "implied_lambda": None},
        "versions": {"torch": "2.0"},
        "commit": "abc",
        "hardware": {"cpus": 2},
        "end": "2026-01-01T00:00:00+00:00",
        **changes,
    }
