"""Whatever happens to an environment's process, the run hears of it: which worker, doing what, and why."""

from __future__ import annotations

import faulthandler
import functools
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from faulty_envs import Masked
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_envs import SEED
from waiting import eventually, gone

from ppo_kl.envs.autoreset import Environments
from ppo_kl.envs.guard import GuardedEnv
from ppo_kl.envs.workers import WorkerVectorEnv, shares_of
from ppo_kl.errors import ConfigError, EnvDataError, EnvWorkerError

CALLS = ("its constructor", "reset", "step")
ID = "toy/Broken-v0"


class Broken(gym.Env[np.ndarray, int]):
    """Three steps of nothing; `fault` is called in one call, and what it returns there is the observation."""

    def __init__(self, call: str = "", fault: Callable[[], Any] | None = None) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._call, self._fault = call, fault
        self._obs("its constructor")

    def _obs(self, call: str) -> Any:
        return self._fault() if self._fault and call == self._call else np.ones(2, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.steps = 0
        return self._obs("reset"), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        return self._obs("step"), 1.0, self.steps == 3, False, {}

    def close(self) -> None:
        self._obs("close")


def raises() -> None:
    raise ValueError("no such move")


def sleeps() -> None:
    time.sleep(1000)


def sleeps_for(seconds: float) -> np.ndarray:
    time.sleep(seconds)
    return np.ones(2, np.float32)


def dies_by(number: int) -> None:
    faulthandler.disable()  # pytest's, which would print its stack
    os.kill(os.getpid(), number)


def made(
    call: str = "", fault: Callable[[], Any] | None = None, timeout: float = 20.0, kind: Any = Broken
) -> WorkerVectorEnv:
    """Three environments, of which number 1 has the fault."""
    makers = [Broken, functools.partial(kind, call, fault), Broken]
    return WorkerVectorEnv(makers, timeout=timeout, name=ID)


def guarded(make: Any, index: int = 1) -> Callable[[], GuardedEnv]:
    """Makes an environment as a run has it: checked, and seeded by itself."""
    return lambda: GuardedEnv(make(), ID, SEED, index, 0)


def use(env: WorkerVectorEnv, steps: int = 2) -> None:
    env.reset()
    for _ in range(steps):
        env.step(np.zeros(env.num_envs, np.int64))


def error_of(
    call: str,
    fault: Callable[[], Any],
    timeout: float = 20.0,
    error: type[Exception] = EnvWorkerError,
    kind: Any = Broken,
) -> str:
    """What one hears of the fault, within 5 s and with no worker left, although nobody closed the environments."""
    began = time.monotonic()
    with pytest.raises(error) as told:
        use(made(call, fault, timeout, kind))
    assert time.monotonic() - began < timeout % 20.0 + 5
    assert not multiprocessing.active_children()
    assert type(told.value) is error
    return str(told.value)


@pytest.fixture(autouse=True)
def _every_worker_ends():
    yield
    assert eventually(lambda: not multiprocessing.active_children())


# --- an environment that raises ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_what_an_environment_raises_is_told_with_its_place_type_text_and_traceback(call):
    told = error_of(call, raises)
    assert told.startswith(f"env.id='{ID}', worker 1: {call} raised ValueError: no such move. ")
    assert "test_workers.py" in told
    assert 'raise ValueError("no such move")' in told


def test_an_error_says_what_was_kept_and_what_to_do():
    told = error_of("step", raises)
    assert "All workers were closed" in told
    assert "no update was made" in told
    assert "what was saved before stays" in told
    assert "--resume" in told


def test_an_automatic_reset_that_raises_is_told_with_the_line_that_did_it():
    resets = []

    def second_time() -> np.ndarray | None:
        resets.append(1)
        return np.ones(2, np.float32) if len(resets) == 1 else raises()

    with pytest.raises(EnvWorkerError, match=r"worker 1: step raised ValueError: no such move(.|\n)*env\.reset\(\)"):
        use(made("reset", second_time), steps=3)


def test_what_an_environment_raised_is_told_also_when_its_process_ended_before_anybody_listened(monkeypatch):
    start = multiprocessing.Process.start

    def slow_start(process: Any) -> None:
        start(process)
        time.sleep(0.3)

    monkeypatch.setattr(multiprocessing.Process, "start", slow_start)
    assert "worker 1: its constructor raised ValueError: no such move" in error_of("its constructor", raises)


class ElsewhereError(EnvDataError):
    """A class that the parent need not know."""


@pytest.mark.parametrize(
    ("raised", "heard"), [(EnvDataError, EnvDataError), (ConfigError, ConfigError), (ElsewhereError, EnvDataError)]
)
@pytest.mark.parametrize("call", CALLS)
def test_an_error_of_ours_comes_out_as_it_went_in(call, raised, heard):
    def fault() -> None:
        raise raised("environment 1, step 7: nan")

    assert error_of(call, fault, error=heard) == "environment 1, step 7: nan"


def test_the_setting_that_an_error_is_about_is_told_as_well():
    def fault() -> None:
        raise ConfigError("id='x': unknown", "id")

    with pytest.raises(ConfigError) as told:
        made("its constructor", fault)
    assert told.value.key == "id"


class OddError(Exception):
    """Neither picklable nor fit to be printed."""

    def __init__(self) -> None:
        self.odd = lambda: None

    def __str__(self) -> str:
        raise RuntimeError("not even this")


def test_an_exception_that_cannot_be_told_is_still_an_exception():
    def fault() -> None:
        raise OddError

    assert "worker 1: exited with code 1 during step" in error_of("step", fault)


@pytest.mark.parametrize("error", [EOFError, BrokenPipeError, ConnectionResetError, TimeoutError])
def test_an_error_of_the_environments_own_connections_is_not_taken_for_one_of_the_workers(error):
    def fault() -> None:
        raise error("the simulator is gone")

    assert f"worker 1: step raised {error.__name__}: the simulator is gone" in error_of("step", fault)


class Tells(Broken):
    """What the fault returns is in the info of its call."""

    def _obs(self, call: str) -> Any:
        self.info = {"odd": super()._obs(call)} if call == self._call else {}
        return np.ones(2, np.float32)

    def reset(self, **_: Any) -> tuple[Any, dict]:
        return super().reset()[0], self.info

    def step(self, action: int) -> Any:
        return *super().step(action)[:-1], self.info


@pytest.mark.parametrize("call", ["reset", "step"])
def test_an_info_that_cannot_be_sent_is_the_workers_error(call):
    told = error_of(call, lambda: lambda: None, kind=Tells)
    assert f"worker 1: {call} raised" in told
    assert "pickle" in told


class Unreadable:
    def __reduce__(self) -> Any:
        return int, ("x",)


def test_an_info_that_cannot_be_read_is_the_workers_error():
    told = error_of("step", Unreadable, kind=Tells)
    assert "worker 1: its answer from step cannot be read: ValueError: invalid literal" in told


@pytest.mark.parametrize("call", ["reset", "step"])
@pytest.mark.parametrize("obs", [None, np.ones(3, np.float32), "left"], ids=["none", "longer", "text"])
def test_an_observation_that_does_not_fit_its_space_is_told_with_both(call, obs):
    def kind(call: str, fault: Any) -> GuardedEnv:
        return guarded(functools.partial(Broken, call, fault))()

    told = error_of(call, lambda: obs, error=EnvDataError, kind=kind)
    assert told.startswith(f"environment 1 ({ID}), step {int(call == 'step')} of its episode 0, sent data")
    assert f"observation has shape {np.shape(obs)}, expected (2,)" in told


class Answers(Broken):
    """A step that answers what it is told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self._answer = answer

    def step(self, action: int) -> Any:
        return self._answer


@pytest.mark.parametrize(
    "answer",
    [
        (np.ones(2, np.float32), 1.0, False, {}),
        (np.ones(2, np.float32), None, False, False, {}),
        (np.ones(2, np.float32), 1.0, np.zeros(2, bool), False, {}),
        (np.ones(2, np.float32), 1.0, False, False, None),
    ],
    ids=["four-values", "no-reward", "two-flags", "no-info"],
)
def test_a_step_that_answers_something_else_is_refused(answer):
    env = WorkerVectorEnv([Broken, guarded(functools.partial(Answers, answer))], timeout=20.0, name=ID)
    env.reset()
    with pytest.raises(EnvDataError, match=r"environment 1 .* sent data that cannot be trained on"):
        env.step(np.zeros(2, np.int64))


# --- a process that dies ----------------------------------------------------------------------------------------------

DEATHS = {
    "was killed by SIGKILL": functools.partial(dies_by, signal.SIGKILL),
    "was killed by SIGSEGV": functools.partial(dies_by, signal.SIGSEGV),
    f"was killed by signal {signal.SIGRTMIN + 3}": functools.partial(dies_by, signal.SIGRTMIN + 3),
    "exited with code 3": functools.partial(os._exit, 3),
    "exited with code 0": functools.partial(os._exit, 0),
    "exited with code 4": functools.partial(sys.exit, 4),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("words", DEATHS)
def test_a_process_that_dies_is_told_with_how_and_when(words, call):
    told = error_of(call, DEATHS[words])
    assert f"env.id='{ID}', worker 1: {words} during {call}. " in told
    assert ("out of memory" in told) == ("SIGKILL" in words)


def test_a_process_that_died_while_nobody_asked_is_told_at_the_next_step():
    env = made()
    use(env)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(EnvWorkerError, match=r"worker \d: was killed by SIGKILL during step"):
        env.step(np.zeros(env.num_envs, np.int64))


def test_a_death_is_noticed_while_another_worker_is_still_busy():
    makers = [lambda: Broken("step", sleeps), lambda: Broken("step", lambda: os._exit(3))]
    env = WorkerVectorEnv(makers, timeout=20.0, name=ID)
    env.reset()
    began = time.monotonic()
    with pytest.raises(EnvWorkerError, match="worker 1: exited with code 3"):
        env.step(np.zeros(2, np.int64))
    assert time.monotonic() - began < 5


def test_a_process_that_lives_but_hung_up_is_told():
    def fault() -> None:
        os.closerange(3, 100)
        sleeps()

    assert "worker 1: closed its pipe during step" in error_of("step", fault)


def test_a_death_is_noticed_although_what_the_process_forked_lives_on():
    def fault() -> None:
        if os.fork() == 0:
            time.sleep(6)
            os._exit(0)
        dies_by(signal.SIGKILL)

    assert "worker 1: was killed by SIGKILL during step" in error_of("step", fault)


# --- a process that hangs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_an_environment_that_hangs_is_told_after_the_timeout(call):
    told = error_of(call, sleeps, timeout=0.5)
    assert f"env.id='{ID}', worker 1: no answer from {call} within env.timeout=0.5 s. " in told
    assert "Raise env.timeout" in told


def test_all_that_hang_are_named():
    env = WorkerVectorEnv([lambda: Broken("step", sleeps), Broken] * 2, timeout=0.5, name=ID)
    env.reset()
    with pytest.raises(EnvWorkerError, match="worker 0, 2: no answer from step"):
        env.step(np.zeros(4, np.int64))


def test_workers_that_answer_one_after_the_other_do_not_hang():
    makers = [lambda: Broken("reset", lambda: sleeps_for(1.0)), lambda: Broken("reset", lambda: sleeps_for(2.0))]
    env = WorkerVectorEnv(makers, timeout=1.6, name=ID)
    assert env.reset()[0].tolist() == [[1, 1], [1, 1]]
    env.close()


@pytest.mark.parametrize("timeout", [1e9, float("inf")])
def test_a_timeout_may_be_longer_than_any_run(timeout):
    env = made(timeout=timeout)
    use(env)
    env.close()


# --- the end ----------------------------------------------------------------------------------------------------------


def test_environments_are_closed_in_their_workers_also_while_later_ones_go_on(tmp_path):
    env, later = made("close", (tmp_path / "closed").touch), made()
    use(env)
    env.close()
    assert (tmp_path / "closed").exists()
    use(later)
    later.close()
    assert not multiprocessing.active_children()


def test_a_forked_copy_of_the_parent_cannot_close_its_workers():
    env = made()
    copy = multiprocessing.Process(target=env.close)
    copy.start()
    copy.join()
    use(env)
    env.close()


class CountsSockets(Broken):
    @property
    def sockets(self) -> int:
        return sum(file.is_socket() for file in Path("/proc/self/fd").iterdir())


def test_a_forked_worker_keeps_no_end_of_another_ones_pipe():
    env = WorkerVectorEnv([CountsSockets] * 3, timeout=20.0, name=ID)
    assert len(set(env.get_attr("sockets"))) == 1
    env.close()


def test_environments_that_did_nothing_wrong_are_closed_after_an_error_too(tmp_path):
    makers = [lambda: Broken("close", (tmp_path / "closed").touch), lambda: Broken("step", raises)]
    env = WorkerVectorEnv(makers, timeout=20.0, name=ID)
    env.reset()
    with pytest.raises(EnvWorkerError):
        env.step(np.zeros(2, np.int64))
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize("steps", [None, 0, 2], ids=["before-reset", "after-reset", "after-steps"])
def test_close_may_come_at_any_time_and_twice(steps):
    env = made()
    if steps is not None:
        use(env, steps)
    began = time.monotonic()
    env.close()
    env.close()
    assert time.monotonic() - began < 2
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("fault", [raises, functools.partial(dies_by, signal.SIGKILL), sleeps])
def test_close_after_an_error_has_nothing_left_to_do(fault):
    env = made("step", fault, timeout=0.5)
    env.reset()
    with pytest.raises(EnvWorkerError):
        env.step(np.zeros(env.num_envs, np.int64))
    began = time.monotonic()
    env.close()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("fault", [raises, functools.partial(os._exit, 3), sleeps])
def test_close_ends_a_worker_whose_environment_cannot_be_closed(fault):
    env = made("close", fault)
    use(env)
    began = time.monotonic()
    env.close()
    assert time.monotonic() - began < 5
    assert not multiprocessing.active_children()


def test_a_call_after_the_end_is_refused():
    env = made()
    env.close()
    for call in (env.reset, functools.partial(env.step, np.zeros(3, np.int64)), functools.partial(env.get_attr, "x")):
        with pytest.raises(EnvWorkerError, match="after its workers were closed"):
            call()


def test_what_interrupts_the_wait_closes_the_workers_so_that_no_late_answer_is_taken_for_the_next_one(monkeypatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    env = made("step", sleeps)
    env.reset()
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            env.step(np.zeros(env.num_envs, np.int64))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert env.closed
    assert not multiprocessing.active_children()


def test_a_signal_at_the_very_start_of_a_worker_leaves_none_behind(monkeypatch):
    start = multiprocessing.Process.start

    def start_and_be_interrupted(self: Any) -> None:
        start(self)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(multiprocessing.Process, "start", start_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        made("its constructor", sleeps, kind=functools.partial(Broken))
    assert eventually(lambda: not multiprocessing.active_children())


def test_actions_of_another_shape_are_refused():
    env = made()
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(1,\), expected \(3,\)"):
        env.step(np.zeros(1, np.int64))
    env.close()


def test_environments_that_nobody_closed_end_with_the_last_reference_to_them():
    env = made("close", sleeps)
    env.reset()
    del env
    gc.collect()
    assert not multiprocessing.active_children()


def test_nothing_stays_open():
    def files() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    made().close()
    before = files()
    for _ in range(3):
        env = made()
        use(env)
        env.close()
        error_of("step", raises)
    assert files() == before


SCRIPT = """
import multiprocessing, os, signal, sys, time
import gymnasium as gym
from ppo_kl.envs.workers import WorkerVectorEnv

class Sleeper(gym.Env):
    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        if action:
            time.sleep(1000)
        return 0, 0.0, False, False, {}

if __name__ == "__main__":
    method, end = sys.argv[1:]
    multiprocessing.set_start_method(method)
    env = WorkerVectorEnv([Sleeper, Sleeper], timeout=30.0, name="toy/Sleeper-v0")
    other = WorkerVectorEnv([Sleeper], timeout=30.0, name="toy/Sleeper-v0")
    env.reset()
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    if end == "exception":
        os.write(env._workers._pipes[1].fileno(), b"s")
        raise RuntimeError("in the learner")
    env.step([0, 1])
"""


@pytest.mark.parametrize("end", ["SIGKILL", "exception"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_no_worker_outlives_its_parent_not_even_one_that_hangs_and_ignores_sigterm(tmp_path, method, end):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, str(script), method, end], env=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as parent:
        try:
            workers = [int(pid) for pid in parent.stdout.readline().split()]
            assert len(workers) == 3
            if end == "SIGKILL":
                assert not any(map(gone, workers))
                parent.kill()
            assert eventually(lambda: parent.poll() is not None)
            assert eventually(lambda: all(map(gone, workers)))
        finally:
            parent.kill()
        if end == "exception":
            assert parent.returncode == 1
            assert "RuntimeError: in the learner" in parent.stderr.read()


# --- what it is when nothing goes wrong -------------------------------------------------------------------------------


class Nested(gym.Env[Any, Any]):
    """Dict observations, Tuple actions, both ends, and infos; what it answers is a function of seed and actions."""

    def __init__(self) -> None:
        inner = spaces.Dict({"count": spaces.Discrete(100), "noise": spaces.Box(-9.0, 9.0, (), np.float64)})
        self.observation_space = spaces.Dict({"inner": inner, "picture": spaces.Box(0, 255, (2, 3), np.uint8)})
        self.action_space = spaces.Tuple((spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,), np.float32)))
        self._picture = np.zeros((2, 3), np.uint8)

    def _obs(self) -> dict[str, Any]:
        self._picture[:] = self.np_random.integers(0, 255, (2, 3))
        return {"inner": {"count": self.steps, "noise": self.np_random.normal()}, "picture": self._picture.copy()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {"begun": options or "alone"}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        obs, ends = self._obs(), self.np_random.random(2) < 0.1
        info = {"steps": self.steps, "position": np.ones(2) * self.steps, "more": {"even": self.steps % 2 == 0}}
        return obs, np.float32(action[0] + action[1].sum()), ends[0], ends[1], info


def equal(a: Any, b: Any) -> bool:
    """Whether two nested things are the same, to the types of their arrays."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple) or (isinstance(a, np.ndarray) and a.dtype == object):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return a == b


@pytest.mark.parametrize("workers", [None, 0, 1, 2, 3])
@pytest.mark.parametrize(
    "make", [functools.partial(gym.make, "CartPole-v1"), Nested, Masked], ids=["cartpole", "nested", "masks"]
)
def test_200_steps_are_those_of_one_process_in_every_array_and_info(make, workers):
    makers = [guarded(make, i) for i in range(4)]
    there = WorkerVectorEnv(makers, timeout=20.0, name="any", workers=workers)
    here = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    for name in ("num_envs", "single_observation_space", "single_action_space", "observation_space", "action_space"):
        assert getattr(there, name) == getattr(here, name)
    assert there.metadata["autoreset_mode"] is here.metadata["autoreset_mode"]
    told = there.reset()
    assert equal(told, here.reset())
    here.action_space.seed(0)
    ended = 0
    for _ in range(200):
        action = allowed(here.action_space.sample(), told[-1])
        told = there.step(action)
        assert equal(told, here.step(action))
        ended += "final_obs" in told[-1]
    assert ended >= 10
    there.close()
    here.close()


def allowed(actions: Any, info: dict[str, Any]) -> Any:
    """Random actions, but for environments whose mask leaves a choice that is known."""
    return info["action_mask"].argmax(1) if "action_mask" in info else actions


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_need_not_be_forked(tmp_path, method):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import functools, multiprocessing, sys
        import gymnasium
        from ppo_kl.envs.guard import GuardedEnv
        from ppo_kl.envs.workers import WorkerVectorEnv

        def make(i):
            return GuardedEnv(gymnasium.make("CartPole-v1"), "any", 7, i, 0)

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            for workers in (None, 1):
                makers = [functools.partial(make, i) for i in range(2)]
                env = WorkerVectorEnv(makers, timeout=30.0, name="any", workers=workers)
                env.reset()
                print(env.step([0, 1])[0].tolist())
                env.close()
            try:
                WorkerVectorEnv([functools.partial(gymnasium.make, "Nothing-v0")], timeout=30.0, name="Nothing-v0")
            except Exception as error:
                print(error)
        """)
    )
    root = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, str(script), method], env=root, text=True, capture_output=True, timeout=60)
    assert not done.stderr
    obs, other_obs, error = done.stdout.split("\n", 2)
    alone = SyncVectorEnv([guarded(functools.partial(gym.make, "CartPole-v1"), i) for i in range(2)])
    alone.reset()
    assert obs == other_obs == str(alone.step(np.array([0, 1]))[0].tolist())
    assert "worker 0: its constructor raised NameNotFound" in error


def test_it_serves_the_one_view_of_all_vector_environments():
    makers = [guarded(functools.partial(gym.make, "CartPole-v1"), i) for i in range(2)]
    there = Environments(WorkerVectorEnv(makers, timeout=20.0, name="CartPole-v1"))
    here = Environments(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))
    assert equal(there.reset(), here.reset())
    ended = 0
    for _ in range(60):
        one, other = there.step(np.ones(2, np.int64)), here.step(np.ones(2, np.int64))
        assert equal(tuple(one), tuple(other))
        ended += len(one.final_obs)
    assert ended >= 8
    assert there.env.get_attr("x_threshold") == (2.4, 2.4)
    there.close()


class OneArray(Broken):
    """Sends all observations in one array: the number of the step."""

    def _obs(self, call: str) -> Any:
        self._array = self.__dict__.get("_array", np.zeros(2, np.float32))
        self._array[:] = getattr(self, "steps", 0)
        return self._array


def test_the_last_observation_stays_what_it_was_where_the_reset_writes_into_the_same_array():
    env = WorkerVectorEnv([guarded(OneArray), guarded(OneArray)], timeout=20.0, name=ID)
    env.reset()
    shown = [env.step(np.zeros(2, np.int64)) for _ in range(3)]
    assert [obs[0, 0] for obs, *_ in shown] == [1, 2, 0]
    assert [obs.tolist() for obs in shown[-1][-1]["final_obs"]] == [[3, 3], [3, 3]]
    env.close()


class BigPicture(gym.Env[np.ndarray, np.ndarray]):
    """An observation and an action of 4 MB, more than any pipe holds."""

    observation_space = spaces.Box(0.0, 1.0, (1_000_000,), np.float32)
    action_space = spaces.Box(0.0, 1.0, (1_000_000,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros(1_000_000, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return action, 0.0, False, False, {}


def test_what_is_larger_than_a_pipe_goes_through_it():
    env = WorkerVectorEnv([BigPicture, BigPicture], timeout=20.0, name="big")
    env.reset()
    action = env.action_space.sample()
    np.testing.assert_array_equal(env.step(action)[0], action)
    env.close()


@pytest.mark.parametrize("number", [1, 2], ids=["stdout", "stderr"])
def test_a_worker_may_print_10_megabytes(number, capfd):
    def prints() -> np.ndarray:
        os.write(number, b"x" * 100)
        stream = sys.__stdout__ if number == 1 else sys.__stderr__
        with os.fdopen(os.dup(stream.fileno()), "w") as out:
            out.write("y" * 10_000_000)
        return np.ones(2, np.float32)

    env = made("step", prints)
    use(env, 1)
    env.close()
    printed = capfd.readouterr()
    assert len(printed[number - 1]) >= 10_000_000


def test_environments_that_differ_are_refused_with_both_spaces():
    class Other(Broken):
        def __init__(self, kind: str) -> None:
            super().__init__()
            setattr(self, f"{kind}_space", spaces.Box(0.0, 2.0, (5,), np.float32))

    first = {"observation": "Box(0.0, 1.0, (2,), float32)", "action": "Discrete(2)"}
    for kind in first:
        with pytest.raises(ConfigError) as told:
            WorkerVectorEnv([Broken, Broken, functools.partial(Other, kind)], timeout=20.0, name=ID)
        assert not multiprocessing.active_children()
        differ = f"number 2 has the {kind} space Box(0.0, 2.0, (5,), float32), number 0 has {first[kind]}"
        assert differ in str(told.value)


# --- several environments in a process, and some in this one ----------------------------------------------------------


def test_environments_are_shared_out_in_their_order_and_this_process_has_the_smallest_share():
    assert [list(share) for share in shares_of(8, 1)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [list(share) for share in shares_of(5, 1)] == [[0, 1], [2, 3, 4]]
    assert [list(share) for share in shares_of(8, 2)] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    for num_envs in range(1, 20):
        for workers in range(num_envs):
            shares = shares_of(num_envs, workers)
            assert [i for share in shares for i in share] == list(range(num_envs))
            sizes = list(map(len, shares))
            assert len(sizes) == workers + 1
            assert sizes[0] == min(sizes) >= max(sizes) - 1


class TellsOfItsProcess(Broken):
    @property
    def pid(self) -> int:
        return os.getpid()

    @property
    def threads(self) -> tuple[int, str | None]:
        return torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")


def shared_out(makers: Any, workers: int, timeout: float = 20.0) -> WorkerVectorEnv:
    return WorkerVectorEnv(makers, timeout=timeout, name=ID, workers=workers)


@pytest.mark.parametrize(("workers", "sizes"), [(0, [5]), (1, [2, 3]), (2, [1, 2, 2])])
def test_this_process_steps_the_first_share_and_each_worker_one_of_the_others(workers, sizes):
    env = shared_out([TellsOfItsProcess] * 5, workers)
    pids = env.get_attr("pid")
    env.close()
    assert pids[0] == os.getpid()
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == sizes


def test_a_worker_uses_one_thread_whatever_its_parent_uses():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        env = shared_out([TellsOfItsProcess] * 2, 1)
        (ours, _), (theirs, variable) = env.get_attr("threads")
        env.close()
    finally:
        torch.set_num_threads(before)
    assert (ours, theirs, variable) == (2, 1, "1")


def five(call: str, fault: Callable[[], Any], at: int) -> list[Any]:
    return [functools.partial(Broken, call, fault) if i == at else Broken for i in range(5)]


@pytest.mark.parametrize("call", CALLS)
def test_a_process_that_dies_is_told_with_the_environments_it_stepped(call):
    with pytest.raises(EnvWorkerError, match=rf"worker 1 \(environments 3 to 4\): exited with code 3 during {call}"):
        use(shared_out(five(call, functools.partial(os._exit, 3), at=4), 2), 5)
    assert not multiprocessing.active_children()


def test_a_process_has_time_for_each_of_its_environments():
    slow = functools.partial(Broken, "step", functools.partial(sleeps_for, 0.4))
    env = shared_out([Broken, slow, slow], 1, timeout=0.5)
    use(env, 1)
    env.close()
    words = (
        r"worker 0 \(environments 1 to 2\): no answer from step within env.timeout=0\.1 s for each of 2 environments"
    )
    with pytest.raises(EnvWorkerError, match=words):
        use(shared_out([Broken, slow, slow], 1, timeout=0.1))


@pytest.mark.parametrize("call", CALLS)
def test_an_error_in_this_process_closes_the_workers_and_its_own_environments(call, tmp_path):
    closes = functools.partial(Broken, "close", (tmp_path / "closed").touch)
    makers = [closes, functools.partial(Broken, call, raises), Broken, Broken]
    with pytest.raises(ValueError, match="no such move"):
        use(shared_out(makers, 1), 4)
    assert not multiprocessing.active_children()
    assert (tmp_path / "closed").exists()


def test_a_worker_that_is_not_asked_sleeps():
    env = shared_out([TellsOfItsProcess] * 2, 1)
    use(env)
    pid = env.get_attr("pid")[1]

    def ticks() -> int:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    before = ticks()
    time.sleep(0.5)
    assert ticks() - before < 0.1 * os.sysconf("SC_CLK_TCK")
    env.close()


def test_what_processes_share_has_no_name():
    def named() -> set[str]:
        return set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()

    before = named()
    env = shared_out([Broken] * 3, 1)
    use(env)
    assert named() <= before
    env.close()


class Says(Broken):
    def __init__(self, kind: str) -> None:
        super().__init__()
        setattr(self, f"{kind}_space", spaces.Dict({"word": spaces.Text(3)}))


@pytest.mark.parametrize("kind", ["observation", "action"])
def test_what_is_no_array_of_numbers_cannot_be_shared(kind):
    with pytest.raises(ConfigError, match=rf"{kind} space Text.*: not supported; supported are Box, Discrete"):
        shared_out([functools.partial(Says, kind)] * 2, 1)


# --- signals ----------------------------------------------------------------------------------------------------------


class TellsOfSignals(Broken):
    """Shows how many signals are blocked in its process, and how many it answers as its parent does."""

    def _obs(self, call: str) -> Any:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        handled = [callable(signal.getsignal(n)) and n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        return np.float32([len(blocked), sum(map(bool, handled))])


def test_a_worker_answers_no_signal_as_its_parent_does_and_blocks_none():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: pytest.fail("the parent's handler")) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        env = WorkerVectorEnv([TellsOfSignals], timeout=20.0, name=ID)
        assert env.reset()[0].tolist() == [[0, 0]]
        env.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
