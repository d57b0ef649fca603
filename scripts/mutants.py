"""Breaks one key line after the other in a copy of the project: a test must fail each time.

A test suite that stays green over a wrong sign is worth nothing; this is the test of the tests.

    python scripts/mutants.py            all of them
    python scripts/mutants.py "KL"       those whose name holds KL
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """One broken line."""

    name: str
    file: str
    line: str
    broken: str
    tests: str


MUTANTS = (
    Mutant(
        "a run that failed counts as finished",
        "ppo_kl/ablation/result.py",
        'if "error" in result or result["id"] != point.id:',
        'if result["id"] != point.id:',
        "tests/ablation/test_execute.py::test_a_run_that_fails_is_tried_twice_and_then_told_with_its_error",
    ),
    Mutant(
        "Holm's correction is Bonferroni's",
        "ppo_kl/ablation/statistics.py",
        "(len(known) - rank) * value",
        "len(known) * value",
        "tests/ablation/test_statistics.py",
    ),
    Mutant(
        "a score above 1 makes up for others",
        "ppo_kl/ablation/statistics.py",
        "np.maximum(1 - scores, 0)",
        "(1 - scores)",
        "tests/ablation/test_statistics.py",
    ),
    Mutant(
        "where a run lies is part of what it is",
        "ppo_kl/ablation/plan.py",
        '("objective.name", "runs_dir", ',
        '("objective.name", ',
        "tests/ablation/test_plan.py",
    ),
    Mutant(
        "two learners share a compiled step",
        "ppo_kl/training/engine.py",
        "function.__code__.replace(),",
        "function.__code__,",
        "tests/training/test_engine.py::test_two_learners_do_not_take_each_others_graphs",
    ),
    Mutant(
        "a network of one's own is not looked at again",
        "ppo_kl/training/learner.py",
        'return "all"',
        'return "none"',
        "tests/training/test_engine.py::test_a_number_that_a_network_of_one_s_own_looks_at_may_change",
    ),
    Mutant(
        "a captured step is used for any shape and setting",
        "ppo_kl/training/learner.py",
        "return self.replayed.of(key, step)",
        "return self.replayed.of((), step)",
        "tests/training/test_engine.py::test_a_setting_changed_by_hand_another_shape_and_autocast_are_not_in_an_old_capture",
    ),
    Mutant(
        "0.5 and NaN become whole numbers",
        "ppo_kl/envs/guard.py",
        "for dtype in (np.dtype(part.dtype), self._promised[part.key]):",
        "for dtype in (np.dtype(part.dtype),):",
        "tests/envs/test_guard.py",
    ),
    Mutant(
        "a run whose last writing failed counts as finished",
        "ppo_kl/diagnostics/background.py",
        "            finished = False\n",
        "",
        "tests/diagnostics/test_background.py",
    ),
    Mutant(
        "an old graph is used with new settings",
        "ppo_kl/objectives/objective.py",
        "return (*self._surrogate_settings.items(), ",
        "return (",
        "tests/training/test_engine.py::test_a_setting_that_is_changed_by_hand_is_not_in_an_old_graph",
    ),
    Mutant(
        "where all rows are said to count is not told apart",
        "ppo_kl/batch.py",
        "return batch.all_count, *(",
        "return None, *(",
        "tests/test_batch.py",
    ),
    Mutant(
        "a gradient that is not finite moves Adam's memory",
        "ppo_kl/training/learner.py",
        "share = moves.to(flat.dtype)",
        "share = torch.ones_like(self._lr)",
        "tests/training/test_learner.py",
    ),
    Mutant(
        "compiles where that costs more than it saves",
        "ppo_kl/training/compile_choice.py",
        "if saved > needed:",
        "if saved < needed:",
        "tests/training/test_compile_choice.py",
    ),
    Mutant(
        "the actor in NumPy forgets its biases",
        "ppo_kl/policies/numpy_actor.py",
        "        y += bias\n",
        "",
        "tests/policies/test_numpy_actor.py",
    ),
    Mutant(
        "a saved run's module is imported to measure its environment",
        "ppo_kl/envs/worker_count.py",
        "    require_imported(config)\n",
        "",
        "tests/training/test_init_from.py",
    ),
    Mutant(
        "the implied λ forgets the plain surrogate",
        "ppo_kl/diagnostics/gradients.py",
        "(surrogate + penalty - ratio)",
        "(surrogate + penalty)",
        "tests/diagnostics/test_gradients.py",
    ),
    Mutant(
        "an epoch's profile holds the epochs before it",
        "ppo_kl/training/learner.py",
        "            self._epoch_kl.zero_()\n",
        "",
        "tests/training/test_learner.py",
    ),
    Mutant(
        "the worst checkpoint is kept as the best",
        "ppo_kl/training/agent.py",
        "found.mean > self.best_return",
        "found.mean < self.best_return",
        "tests/training/test_evaluated_runs.py",
    ),
    Mutant(
        "replayed environments may stand elsewhere",
        "ppo_kl/envs/snapshot.py",
        "differs |= _rows_that_differ(now, then.numpy(), envs.num_envs)",
        "pass",
        "tests/envs/test_snapshot.py tests/training/test_resume.py",
    ),
    Mutant(
        "another run's weights come with its statistics of observations left behind",
        "ppo_kl/training/init_from.py",
        '    agent.obs_normalizer.load_state_dict(state["obs_normalizer"])\n',
        "",
        "tests/training/test_init_from.py",
    ),
    Mutant(
        "an event file's purge is not kept to",
        "ppo_kl/diagnostics/event_file.py",
        "event.session_log.status == SessionLog.START",
        "event.session_log.status == SessionLog.STOP",
        "tests/diagnostics/test_event_file.py",
    ),
    Mutant(
        "truncation is not bootstrapped",
        "ppo_kl/training/advantages.py",
        "np.where(ends_for_good, 0.0, following)",
        "np.where(ends_for_good | truncated.cpu().numpy(), 0.0, following)",
        "tests/training/test_advantages.py",
    ),
    Mutant(
        "EnvPool's smallest positive number stands for no bound",
        "ppo_kl/envs/envpool.py",
        "np.where(space.low == UNBOUNDED, -np.inf, space.low)",
        "space.low",
        "tests/envs/test_envpool.py",
    ),
    Mutant(
        "a checkpoint forgets what was remembered",
        "ppo_kl/training/agent.py",
        "self._memory = collector.state",
        "self._memory = ()",
        "tests/training/test_recurrent.py",
    ),
    Mutant(
        "dummy rows count",
        "ppo_kl/envs/autoreset.py",
        "valid = ~self._only_resets",
        "valid = np.ones_like(self._only_resets)",
        "tests/envs/test_autoreset.py",
    ),
    Mutant(
        "KL direction swapped",
        "ppo_kl/objectives/divergence.py",
        'if direction == "forward" else',
        'if direction != "forward" else',
        "tests/objectives",
    ),
    Mutant(
        "λ is not clamped",
        "ppo_kl/objectives/objective.py",
        "moved = moved.clamp(*self._bounds)",
        "moved = moved.clone()",
        "tests/objectives",
    ),
    Mutant(
        "no finite gate",
        "ppo_kl/training/learner.py",
        "self._adam(grad, finite & moves)",
        "self._adam(grad, moves)",
        "tests/training/test_learner.py",
    ),
    Mutant(
        "ratio upside down",
        "ppo_kl/objectives/objective.py",
        "ratio = (logp - logp_old).clamp",
        "ratio = (logp_old - logp).clamp",
        "tests/objectives",
    ),
    Mutant(
        "GAE runs across the end of an episode",
        "ppo_kl/training/advantages.py",
        "np.where(goes_on, gamma * gae_lambda, 0.0)",
        "np.where(counts, gamma * gae_lambda, 0.0)",
        "tests/training/test_advantages.py",
    ),
    Mutant(
        "seeds by addition",
        "ppo_kl/envs/guard.py",
        "np.random.SeedSequence(seed, spawn_key=(env, episode))",
        "np.random.SeedSequence(seed + env + episode)",
        "tests/envs/test_make.py",
    ),
    Mutant(
        "advantage sign",
        "ppo_kl/batch.py",
        "adv=flat(adv),",
        "adv=flat(-adv),",
        "tests/test_batch.py tests/training",
    ),
    Mutant(
        "a NaN value leaks past the end of an episode",
        "ppo_kl/training/advantages.py",
        "np.where(ends_for_good, 0.0, following)",
        "(1 - ends_for_good) * following",
        "tests/training/test_advantages.py",
    ),
    Mutant(
        "padding counts in the loss",
        "ppo_kl/objectives/reduction.py",
        "    if valid is None:",
        "    if valid is not None or valid is None:",
        "tests/objectives",
    ),
    Mutant(
        "λ moves in forward",
        "ppo_kl/objectives/objective.py",
        "        with torch.no_grad():\n            low, high =",
        "        with torch.no_grad():\n            self.kl_lambda.mul_(1.01)\n            low, high =",
        "tests/objectives",
    ),
    Mutant(
        "killed is whatever lies outside the band",
        "ppo_kl/objectives/surrogates.py",
        "((adv > 0) & (ratio > high)) | ((adv < 0) & (ratio < low))",
        "(ratio > high) | (ratio < low)",
        "tests/objectives/test_surrogates.py",
    ),
    Mutant(
        "the trust region asks for r > 1",
        "ppo_kl/objectives/surrogates.py",
        "& (ratio * adv > adv)",
        "& (ratio > 1)",
        "tests/objectives/test_surrogates.py",
    ),
    Mutant(
        "the PI controller forgets its last error",
        "ppo_kl/objectives/controllers.py",
        "torch.stack([error, torch.ones_like(error)])",
        "memory.clone()",
        "tests/objectives/test_controllers.py",
    ),
    Mutant(
        "the early stop looks after the step",
        "ppo_kl/training/learner.py",
        "            self.early_stop.before_step_(losses.stop_kl)\n            moves = self.early_stop.moves()",
        "            moves = self.early_stop.moves()\n            self.early_stop.before_step_(losses.stop_kl)",
        "tests/training/test_kl_stop.py",
    ),
    Mutant(
        "half precision is not widened",
        "ppo_kl/objectives/distributions.py",
        "return x if x.dtype == torch.float64 else x.float()",
        "return x",
        "tests/objectives",
    ),
    Mutant(
        "the Beta's KL in float32",
        "ppo_kl/objectives/distributions.py",
        "return as_wide_as_can_be(beta.concentration1), as_wide_as_can_be(beta.concentration0)",
        "return beta.concentration1, beta.concentration0",
        "tests/objectives/test_distributions.py",
    ),
    Mutant(
        "a mask on both sides leaks into the gradient",
        "ppo_kl/objectives/distributions.py",
        "    log_p = torch.where(possible, log_p, 0.0)\n",
        "",
        "tests/objectives/test_distributions.py",
    ),
    Mutant(
        "tanh is left out of the density",
        "ppo_kl/objectives/gaussians.py",
        "return base - _log_slope(value).sum(-1)",
        "return base",
        "tests/objectives/test_gaussians.py",
    ),
    Mutant(
        "the observation normaliser moves before the update",
        "ppo_kl/training/iteration.py",
        "    raw = flatten(",
        "    agent.obs_normalizer.update_(rollout.obs.flatten(0, 1), rollout.valid.flatten())\n    raw = flatten(",
        "tests/training/test_agent.py",
    ),
    Mutant(
        "the update forgets the mask",
        "ppo_kl/policies/actor_critic.py",
        "    mask = batch.action_mask\n",
        "    mask = None\n",
        "tests/training/test_learner.py",
    ),
    Mutant(
        "a memory outlives its episode",
        "ppo_kl/policies/actor_critic.py",
        "*[1] * (old.dim() - 1)), new, old)",
        "*[1] * (old.dim() - 1)), old, old)",
        "tests/policies/test_actor_critic.py tests/training/test_recurrent.py",
    ),
    Mutant(
        "the last observation is valued without its memory",
        "ppo_kl/training/collector.py",
        "tuple(x[i] for x in memory.state)",
        "tuple(0 * x[i] for x in memory.state)",
        "tests/training/test_recurrent.py",
    ),
    Mutant(
        "padding of sequences counts",
        "ppo_kl/batch.py",
        "taken.valid & valid.repeat_interleave(length)",
        "valid.repeat_interleave(length)",
        "tests/test_batch.py tests/training/test_recurrent.py",
    ),
    Mutant(
        "pixels are not scaled",
        "ppo_kl/policies/encoders.py",
        "self.cnn(x / self.scale if self.scale != 1 else x)",
        "self.cnn(x)",
        "tests/policies/test_encoders.py",
    ),
    Mutant(
        "what a checkpoint names is imported",
        "ppo_kl/imports.py",
        "    if module not in sys.modules:\n        raise ConfigError(",
        "    if importlib.import_module(module) is None:\n        raise ConfigError(",
        "tests/test_imports.py",
    ),
    Mutant(
        "an episode that is cut keeps what is not finite",
        "ppo_kl/envs/guard.py",
        "return self._last, kept, over, not over",
        "return obs, kept, over, not over",
        "tests/training/test_faults.py",
    ),
    Mutant(
        "a checkpoint is written in place",
        "ppo_kl/atomic.py",
        "        os.replace(temporary, path)",
        "        path.write_bytes(temporary.read_bytes())",
        "tests/test_atomic.py",
    ),
    Mutant(
        "the digest of a checkpoint is not looked at",
        "ppo_kl/checkpoint.py",
        "    if hashlib.sha256(content).digest() != digest:",
        "    if False:",
        "tests/test_checkpoint.py",
    ),
    Mutant(
        "the checkpoint just saved is let go of for damaged ones of later steps",
        "ppo_kl/checkpoint.py",
        "    for old in [path for path in in_order(saved.parent) if path.name <= saved.name][:-keep]:",
        "    for old in in_order(saved.parent)[:-keep]:",
        "tests/test_checkpoint.py",
    ),
    Mutant(
        "SB3: the old policy of other rows",
        "ppo_kl/integrations/sb3.py",
        "[p[index] for p in params_old]",
        "[p[: len(index)] for p in params_old]",
        "tests/integrations/test_sb3.py",
    ),
    Mutant(
        "adapters: λ adapts on the largest KL of a state",
        "ppo_kl/integrations/adapter.py",
        'objective.adapt_(metrics["kl/controlled"], progress',
        'objective.adapt_(metrics["kl/forward_max"], progress',
        "tests/integrations/test_sb3.py",
    ),
    Mutant(
        "SB3: λ is not saved",
        "ppo_kl/integrations/sb3.py",
        'return [*modules, "objective"], tensors',
        "return modules, tensors",
        "tests/integrations/test_sb3.py",
    ),
    Mutant(
        "TorchRL: the old policy is the present one",
        "ppo_kl/integrations/torchrl.py",
        "kl=policy_kl(pi_old, _joint(pi),",
        "kl=policy_kl(_joint(pi), _joint(pi),",
        "tests/integrations/test_torchrl.py",
    ),
    Mutant(
        "TorchRL: masks are ignored",
        "ppo_kl/integrations/torchrl.py",
        "valid=valid,",
        "valid=None,",
        "tests/integrations/test_torchrl.py",
    ),
)


def passes(tree: Path, tests: str) -> bool:
    """Whether the tests pass on the project in `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"mutants.py: pytest itself failed:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def main(wanted: str) -> int:
    """Break, test, mend; the number of mutants that no test noticed."""
    chosen = [mutant for mutant in MUTANTS if wanted in mutant.name]
    if not chosen:
        sys.exit(f"mutants.py: no mutant has {wanted!r} in its name")
    stale = [mutant for mutant in MUTANTS if (ROOT / mutant.file).read_text().count(mutant.line) != 1]
    if stale:
        sys.exit("\n".join(f"mutants.py: not found exactly once in {m.file}: {m.line!r}" for m in stale))
    for mutant in MUTANTS:
        ast.parse((ROOT / mutant.file).read_text().replace(mutant.line, mutant.broken), mutant.name)
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "project"
        skip = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT, tree, ignore=skip)
        if not passes(tree, " ".join(dict.fromkeys(path for mutant in chosen for path in mutant.tests.split()))):
            sys.exit("mutants.py: the tests fail without any mutant; mend that first")
        survivors = []
        for mutant in chosen:
            path = tree / mutant.file
            text = path.read_text()
            path.write_text(text.replace(mutant.line, mutant.broken))
            noticed = not passes(tree, mutant.tests)
            path.write_text(text)
            print(f"{'noticed ' if noticed else 'SURVIVED'}  {mutant.name}", flush=True)
            survivors += [] if noticed else [mutant]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were noticed")
    return len(survivors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
