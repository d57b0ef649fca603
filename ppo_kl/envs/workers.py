"""One process per environment, and for everything that can happen to a process an error that says what happened.

A worker makes its environment, sends the spaces, and then answers one call at a time through a pipe. What goes wrong
inside it comes back as text; a worker that died or does not answer is noticed by the parent. Either way all workers are
closed before the error is raised, and no worker outlives its parent.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import selectors
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from ppo_kl import errors
from ppo_kl.errors import ConfigError, EnvWorkerError

GRACE = 1.0
"""Seconds that workers have to close their environments before they are killed."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SLICE = 1.0
"""Seconds; see `_signs_within`."""

_AFTER = "All workers were closed and no update was made with what was sent last; what was saved before stays."
_GO_ON = "then go on from the last checkpoint with --resume, or begin a new run where a setting has to change."

Maker: TypeAlias = Callable[[], gym.Env[Any, Any]]
Pipe: TypeAlias = "Connection[Any, Any]"  # generic for type checkers alone


def require_alike(spaces: Sequence[tuple[Any, Any]], name: str) -> None:
    """Refuse copies of an environment that differ in what they show or take.

    Args:
        spaces: observation space and action space of each copy.
        name: the environment's id.

    Raises:
        ConfigError: one differs from the first.
    """
    for number, theirs in enumerate(spaces):
        for kind, first, other in zip(("observation", "action"), spaces[0], theirs, strict=True):
            if first != other:
                raise ConfigError(
                    f"env.id={name!r}: the copies of an environment must be alike, but number {number} has the {kind} "
                    f"space {other}, number 0 has {first}; all were closed and nothing was run",
                    "id",
                )


class WorkerVectorEnv(VectorEnv[Any, Any, Any]):
    """N environments, each in a process of its own, that reset in the step that ends an episode.

    Args:
        makers: make one environment each, in its worker; picklable unless processes are forked.
        timeout: seconds without any answer after which the workers that still owe one count as hanging.
        name: the environment's id, for messages.

    Raises:
        EnvWorkerError: an environment failed, died or did not answer; so do `reset` and `step`.
        ConfigError: the environments have different spaces.
    """

    def __init__(self, makers: Sequence[Maker], *, timeout: float, name: str) -> None:
        self.num_envs = len(makers)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self._timeout, self._name = timeout, name
        self._pipes: list[Pipe] = []
        self._processes: list[BaseProcess] = []
        self._signs = selectors.DefaultSelector()
        # Also when nobody closes us, or the interpreter ends.
        self._end = weakref.finalize(self, _end, os.getpid(), self._pipes, self._processes, self._signs)
        with self._closed_by_any_error():
            for worker, make in enumerate(makers):
                self._start(worker, make)
            spaces = self._answers("its constructor")
            require_alike(spaces, name)
        self.single_observation_space, self.single_action_space = spaces[0]
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode everywhere; a lone seed is of environment 0, the next has the next one."""
        if seed is None or isinstance(seed, int):
            seed = [None if seed is None else seed + i for i in range(self.num_envs)]
        with self._closed_by_any_error():
            obs, infos = zip(*self._ask("reset", [(each, options) for each in seed]), strict=True)
            return self._batched(obs, "reset"), self._merged(infos)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every environment; the last observation of an episode is in `final_obs`, its info in `final_info`."""
        each = list(iterate(self.action_space, actions))
        with self._closed_by_any_error():
            obs, reward, terminated, truncated, infos = zip(*self._ask("step", each), strict=True)
            batched, merged = self._batched(obs, "step"), self._merged(infos)
        return batched, np.array(reward, np.float64), np.array(terminated, bool), np.array(truncated, bool), merged

    def replay(self, actions: Sequence[Sequence[Any]]) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Begin an episode everywhere and go on by the actions of each, side by side; see `GuardedEnv.replay`."""
        # An answer to n actions may take as long as n answers.
        patience = self._timeout * (1 + max(map(len, actions)))
        with self._closed_by_any_error():
            obs, returns, over, infos = zip(*self._ask("replay", actions, patience), strict=True)
            batched, merged = self._batched(obs, "replay"), self._merged(infos)
        return batched, np.array(returns, np.float64), np.array(over, bool), merged

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment, or of the innermost wrapper that has it."""
        with self._closed_by_any_error():
            return tuple(self._ask("get_attr", [name] * self.num_envs))

    def close_extras(self, **_: Any) -> None:
        """End the workers, within `GRACE`."""
        self._end()

    @contextlib.contextmanager
    def _closed_by_any_error(self) -> Iterator[None]:
        # Also by Ctrl-C: an answer that nobody waited for would be taken for the answer to the next call.
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _start(self, worker: int, make: Maker) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._pipes.append(ours)
        # A forked worker has our ends of the pipes made so far: while it holds them, no worker sees ours closed.
        inherited = tuple(self._pipes) if multiprocessing.get_start_method() == "fork" else ()
        process = multiprocessing.Process(
            target=_work, args=(make, theirs, inherited), name=f"{self._name}-{worker}", daemon=True
        )
        # A signal that comes before the worker has its own handlers waits: it would meet ours there.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            theirs.close()
        self._processes.append(process)
        # Registered once: to wait with multiprocessing.connection.wait costs 0.3 ms for 64 workers, each time.
        self._signs.register(ours, selectors.EVENT_READ, (False, worker))
        self._signs.register(process.sentinel, selectors.EVENT_READ, (True, worker))

    def _ask(self, call: str, arguments: Iterable[Any], timeout: float | None = None) -> list[Any]:
        if self.closed:
            raise EnvWorkerError(f"env.id={self._name!r}: {call} after its workers were closed; make it anew.")
        for pipe, argument in zip(self._pipes, arguments, strict=True):
            # To a worker that is gone; why is found out where its answer is awaited.
            with contextlib.suppress(OSError):
                pipe.send((call, argument))
        return self._answers(call, timeout)

    def _answers(self, call: str, timeout: float | None = None) -> list[Any]:
        """What each worker answered; workers may be many on few cores, so each answer gives the others new time."""
        timeout = self._timeout if timeout is None else timeout
        answers: dict[int, Any] = {}
        while len(answers) < self.num_envs:
            signs = self._signs_within(timeout)
            if not signs:
                silent = [worker for worker in range(self.num_envs) if worker not in answers]
                for worker in silent:
                    self._processes[worker].kill()
                raise self._error(
                    ", ".join(map(str, silent)),
                    f"no answer from {call} within env.timeout={self._timeout:g} s",
                    f"Raise env.timeout if the environment may need longer, or correct what it waits for; {_GO_ON}",
                )
            # Pipes come first: a worker may have said why it ends.
            for is_dead, worker in signs:
                if is_dead:
                    raise self._death(worker, call)
                answers[worker] = self._received(worker, call)
        return [answers[worker] for worker in range(self.num_envs)]

    def _signs_within(self, timeout: float) -> list[tuple[bool, int]]:
        """Which workers answered or died: (whether it died, which). None where none did within `timeout` seconds.

        The time is counted in slices that were waited through, so that one in which this process was itself stopped,
        as by SIGSTOP, counts as one slice at most.
        """
        while timeout > 0:
            signs = sorted(key.data for key, _ in self._signs.select(min(timeout, SLICE)))
            if signs:
                return signs
            timeout -= SLICE
        return []

    def _received(self, worker: int, call: str) -> Any:
        try:
            fault, answer = self._pipes[worker].recv()
        except (EOFError, OSError) as error:
            raise self._death(worker, call) from error
        except Exception as error:
            what = f"its answer from {call} cannot be read: {type(error).__name__}: {error}"
            raise self._error(worker, what, f"Correct the environment, {_GO_ON}") from error
        if fault is None:
            return answer
        ours, text, trace = fault
        if ours:
            raise getattr(errors, ours)(text)
        raise self._error(
            worker, f"{call} raised {text}", f"Correct the environment, {_GO_ON}\nIn the worker:\n{trace}"
        )

    def _death(self, worker: int, call: str) -> EnvWorkerError:
        code = _exit_code(self._processes[worker], time.monotonic() + GRACE)
        advice = f"Look for what it wrote above, correct the environment, {_GO_ON}"
        if code is None:
            what = "closed its pipe"
        elif code >= 0:
            what = f"exited with code {code}"
        else:
            what = f"was killed by {({s.value: s.name for s in signal.Signals}).get(-code, f'signal {-code}')}"
            if -code == signal.SIGKILL:
                advice = (
                    "The machine may have run out of memory (the kernel's log says so): lower env.num_envs or what one "
                    f"environment needs, {_GO_ON}"
                )
        return self._error(worker, f"{what} during {call}", advice)

    def _batched(self, observations: Sequence[Any], call: str) -> Any:
        try:
            return self._concatenated(observations)
        except Exception as error:
            for worker, obs in enumerate(observations):
                try:
                    self._concatenated([obs])
                except Exception:
                    what = f"the observation from {call} does not fit {self.single_observation_space}: {obs!r:.200}"
                    raise self._error(worker, what, f"Correct the environment, {_GO_ON}") from error
            raise

    def _concatenated(self, observations: Sequence[Any]) -> Any:
        empty: Any = create_empty_array(self.single_observation_space, len(observations))
        return concatenate(self.single_observation_space, observations, empty)

    def _merged(self, infos: Iterable[dict[str, Any]]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for worker, info in enumerate(infos):
            merged = self._add_info(merged, info, worker)
        return merged

    def _error(self, worker: int | str, what: str, advice: str) -> EnvWorkerError:
        return EnvWorkerError(f"env.id={self._name!r}, worker {worker}: {what}. {_AFTER} {advice}")


def _end(owner: int, pipes: Sequence[Pipe], processes: Sequence[BaseProcess], signs: selectors.BaseSelector) -> None:
    if os.getpid() != owner:  # a forked copy of us
        return
    signs.close()
    for pipe in pipes:
        with contextlib.suppress(OSError):
            pipe.send(None)
        pipe.close()
    deadline = time.monotonic() + GRACE
    for process in processes:
        if _exit_code(process, deadline) is None:
            process.kill()
    for process in processes:
        if _exit_code(process, deadline + GRACE) is not None:
            process.close()


def _exit_code(process: BaseProcess, deadline: float) -> int | None:
    # Not by join: it waits for ever, timeout or not, for a process that lives but has closed its files.
    while (code := process.exitcode) is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return code


def _work(make: Maker, pipe: Pipe, inherited: Sequence[Pipe]) -> None:
    """The life of a worker: (None, answer) for the spaces and for each call, or (fault, None), which is its last word.

    A fault is (name of a class in `ppo_kl.errors` or "", text, traceback): never an exception, which may not be
    picklable, or not here.
    """
    for theirs in inherited:
        theirs.close()
    # A signal to the process group, as Ctrl-C, is the parent's to answer. A forked worker would inherit its handlers.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    env = None
    try:
        env = make()
        answer: Any = env.observation_space, env.action_space
        while True:
            pipe.send((None, answer))
            command = pipe.recv()
            if command is None:
                break
            call, argument = command
            answer = _CALLS[call](env, argument)
    except Exception as error:
        ours = [cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__]
        text = str(error) if ours else f"{type(error).__name__}: {error}"
        # The parent may be gone, which is what ended us then.
        with contextlib.suppress(OSError):
            pipe.send((("".join(ours[:1]), text, traceback.format_exc()), None))
    if env is not None:
        env.close()


def _end_with_parent() -> None:
    """A thread of its own, so that an environment that hangs does not keep its worker alive."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)


def _reset(env: gym.Env[Any, Any], argument: tuple[int | None, dict[str, Any] | None]) -> Any:
    obs, info = env.reset(seed=argument[0], options=argument[1])
    return obs, dict(info)


def _step(env: gym.Env[Any, Any], action: Any) -> Any:
    obs, reward, terminated, truncated, info = env.step(action)
    if terminated or truncated:
        # A copy: the reset may write into the same array.
        last = {"final_obs": copy.deepcopy(obs), "final_info": dict(info)}
        obs, info = env.reset()
        info = last | info
    return obs, float(reward), bool(terminated), bool(truncated), dict(info)


_CALLS: dict[str, Callable[[gym.Env[Any, Any], Any], Any]] = {
    "reset": _reset,
    "step": _step,
    "replay": lambda env, actions: env.replay(actions),  # type: ignore[attr-defined]
    "get_attr": lambda env, name: env.get_wrapper_attr(name),
}
