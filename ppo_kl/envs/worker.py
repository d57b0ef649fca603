"""The life of a worker process: it makes its environments, then answers one call after the other.

Through its pipe come one byte for what is asked, and a message behind it only where there is more to say; the actions
lie in shared memory, and so do observations, rewards and ends. The answer is one byte too, and what is rare behind it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler, recv_handle
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym

from ppo_kl import errors
from ppo_kl.envs.share import Share
from ppo_kl.envs.shared import rows_in

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SPIN = 1e-3
"""Seconds that a process looks for a byte before it sleeps: longer than a small policy takes to act, since to be woken
takes a tenth of a millisecond, in every step."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Where libraries that a worker loads look for how many threads they may use."""
STEP, CALL, END = b"s", b"c", b"e"
"""What a worker is asked: to step, to answer the call that follows, to close its environments."""
DONE, TOLD = b"d", b"t"
"""What it answers: nothing but what is in the rows, or what follows."""

Maker: TypeAlias = Callable[[], gym.Env[Any, Any]]
Pipe: TypeAlias = "Connection[Any, Any]"  # generic for type checkers alone


class Task(NamedTuple):
    """What one worker is there for."""

    makers: Sequence[Maker]
    """Make its environments, one each."""
    share: range
    """Their rows."""
    spin: float
    """Seconds, see `SPIN`."""


def live(task: Task, pipe: Pipe, inherited: Sequence[Pipe]) -> None:
    """Answer (None, answer) for the spaces and for each call, or (fault, None), which is the last word.

    A fault is (name of a class in `ppo_kl.errors` or "", text, traceback, the setting's key or none): never an
    exception, which may not be picklable, or not here.

    Args:
        task: which environments.
        pipe: to the parent.
        inherited: its ends of other pipes, which a fork has copied.
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
    _use_one_thread()
    with contextlib.ExitStack() as at_end:
        try:
            envs = []
            for make in task.makers:
                envs.append(make())
                at_end.callback(envs[-1].close)
            _answer(pipe, None, [(env.observation_space, env.action_space) for env in envs])
            _serve(task, pipe, envs)
        except Exception as error:
            ours = [cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__]
            text = str(error) if ours else f"{type(error).__name__}: {error}"
            # The parent may be gone, which is what ended us then.
            with contextlib.suppress(OSError):
                _answer(pipe, ("".join(ours[:1]), text, traceback.format_exc(), getattr(error, "key", None)), None)


def _serve(task: Task, pipe: Pipe, envs: Sequence[gym.Env[Any, Any]]) -> None:
    share: Any = None
    asked = select.poll()
    asked.register(pipe.fileno(), select.POLLIN)
    while True:
        wait_a_moment(lambda: asked.poll(0), task.spin)
        what = os.read(pipe.fileno(), 1)
        if what == STEP:
            _answer(pipe, None, share.step() or None)
        elif what == CALL:
            name, argument = pipe.recv()
            if name == "rows":
                share = _share(task, envs, recv_handle(pipe), argument)
                _answer(pipe, None, None)
            else:
                _answer(pipe, None, getattr(share, name)(argument))
        else:
            return


def _share(task: Task, envs: Sequence[gym.Env[Any, Any]], memory: int, num_envs: int) -> Share:
    made_for = envs[0].observation_space, envs[0].action_space
    rows = rows_in(memory, made_for, num_envs)
    os.close(memory)
    return Share(envs, rows.of(task.share, made_for))


def _answer(pipe: Pipe, fault: tuple[str, str, str, str | None] | None, answer: Any) -> None:
    if fault is None and answer is None:
        os.write(pipe.fileno(), DONE)
        return
    message = ForkingPickler.dumps((fault, answer))  # before anything is sent: it may fail
    os.write(pipe.fileno(), TOLD)
    pipe.send_bytes(message)


def wait_a_moment(is_there: Callable[[], Any], seconds: float) -> Any:
    """Look again and again, for `seconds` at most, and let go first if others want the core; what `is_there` said."""
    end = time.perf_counter() + seconds
    while not (found := is_there()) and time.perf_counter() < end:
        os.sched_yield()
    return found


def _end_with_parent() -> None:
    """A thread of its own, so that an environment that hangs does not keep its worker alive."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)


def _use_one_thread() -> None:
    """Side by side on few cores, more threads would only take them from each other."""
    os.environ.update(dict.fromkeys(THREADS, "1"))
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
