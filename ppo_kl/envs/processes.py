"""Processes that answer calls, and for everything that can happen to a process an error that says what happened.

What goes wrong inside a worker comes back as text; a worker that died or does not answer is noticed. No worker outlives
its parent, but for one that is inside of C code which holds Python's lock, and only as long as it is there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import selectors
import signal
import time
import weakref
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import send_handle
from typing import Any

from ppo_kl import errors
from ppo_kl.envs.cores import cores_allowed
from ppo_kl.envs.worker import CALL, DONE, END, SIGNALS, SPIN, STEP, Maker, Pipe, Task, live, wait_a_moment
from ppo_kl.errors import EnvWorkerError

GRACE = 1.0
"""Seconds that workers have to close their environments before they are killed."""
SLICE = 1.0
"""Seconds; see `_signs_within`."""

_AFTER = "All workers were closed and no update was made with what was sent last; what was saved before stays."
_GO_ON = "then go on from the last checkpoint with --resume, or begin a new run where a setting has to change."


class Workers:
    """Worker processes, each with its share of the environments.

    Args:
        timeout: seconds without any answer, for each environment of the largest share, after which the workers that
            still owe one count as hanging.
        name: the environments' id, for messages.
    """

    def __init__(self, timeout: float, name: str) -> None:
        self.timeout, self._name = timeout, name
        self._spin = 0.0
        self._shares: list[range] = []
        self._pipes: list[Pipe] = []
        self._processes: list[BaseProcess] = []
        self._signs = selectors.DefaultSelector()
        # Also when nobody closes them, or the interpreter ends.
        self.end = weakref.finalize(self, _end, os.getpid(), self._pipes, self._processes, self._signs)
        """Let them close their environments, within `GRACE`; once."""

    def start(self, makers: Sequence[Maker], shares: Sequence[range]) -> None:
        """A worker for each share, which makes the environments of these numbers."""
        self._shares = list(shares)
        # Where processes wait for a core, one that looks would take it from one that works.
        self._spin = SPIN if len(shares) < cores_allowed() else 0.0
        for worker, share in enumerate(shares):
            self._start(worker, Task([makers[i] for i in share], share, self._spin))

    def _start(self, worker: int, task: Task) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._pipes.append(ours)
        # A forked worker has our ends of the pipes made so far: while it holds them, no worker sees ours closed.
        inherited = tuple(self._pipes) if multiprocessing.get_start_method() == "fork" else ()
        process = multiprocessing.Process(
            target=live, args=(task, theirs, inherited), name=f"{self._name}-{worker}", daemon=True
        )
        # A signal that comes before the worker has its own handlers waits: it would meet ours there.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process.start()
            # Before the signal that waited is met, which may end all this: what has begun is to be ended with it.
            self._processes.append(process)
            theirs.close()
            # Registered once: to wait with multiprocessing.connection.wait costs 0.3 ms for 64 workers, each time.
            self._signs.register(ours, selectors.EVENT_READ, (False, worker))
            self._signs.register(process.sentinel, selectors.EVENT_READ, (True, worker))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def give_rows(self, memory: int, num_envs: int) -> None:
        """Hand the memory that all processes share to each; see `ppo_kl.envs.shared`."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            with contextlib.suppress(OSError):
                _send(pipe, "rows", num_envs)
                send_handle(pipe, memory, process.pid or 0)
        self.answers("its constructor")

    def ask_step(self) -> None:
        """Let each step by the actions in its rows; what is rare about it is in `answers`."""
        for pipe in self._pipes:
            # To a worker that is gone; why is found out where its answer is awaited.
            with contextlib.suppress(OSError):
                os.write(pipe.fileno(), STEP)

    def ask(self, call: str, arguments: Sequence[Any]) -> None:
        """Let each answer a call of `Share`, with an argument of its own."""
        for pipe, argument in zip(self._pipes, arguments, strict=True):
            with contextlib.suppress(OSError):
                _send(pipe, call, argument)

    def answers(self, call: str, patience: float = 1.0) -> list[Any]:
        """What each worker answered; workers may be many on few cores, so each answer gives the others new time.

        Args:
            call: for messages.
            patience: how many times the usual time it may take.

        Raises:
            EnvWorkerError: an environment failed, its process died, or it did not answer.
        """
        largest = max(map(len, self._shares), default=1)
        answers: dict[int, Any] = {}
        while len(answers) < len(self._pipes):
            signs = self._signs_within(self.timeout * largest * patience)
            if not signs:
                silent = [worker for worker in range(len(self._pipes)) if worker not in answers]
                for worker in silent:
                    self._processes[worker].kill()
                each = f" for each of {largest} environments" if largest > 1 else ""
                raise self._error(
                    ", ".join(map(self._label, silent)),
                    f"no answer from {call} within env.timeout={self.timeout:g} s{each}",
                    f"Raise env.timeout if the environment may need longer, or correct what it waits for; {_GO_ON}",
                )
            # Pipes come first: a worker may have said why it ends.
            for is_dead, worker in signs:
                if is_dead:
                    raise self._death(worker, call)
                answers[worker] = self._received(worker, call)
        return [answers[worker] for worker in range(len(self._pipes))]

    def _signs_within(self, timeout: float) -> list[tuple[bool, int]]:
        """Which workers answered or died: (whether it died, which). None where none did within `timeout` seconds.

        The time is counted in slices that were waited through, so that one in which this process was itself stopped,
        as by SIGSTOP, counts as one slice at most.
        """
        ready = wait_a_moment(lambda: self._signs.select(0), self._spin)
        while not ready and timeout > 0:
            ready = self._signs.select(min(timeout, SLICE))
            timeout -= SLICE
            if not ready and (dead := self._dead()):
                return dead
        return sorted(key.data for key, _ in ready)

    def _dead(self) -> list[tuple[bool, int]]:
        """Those that ended without a sign: what they forked themselves lives on and holds their files."""
        return [(True, worker) for worker, process in enumerate(self._processes) if process.exitcode is not None]

    def _received(self, worker: int, call: str) -> Any:
        try:
            what = os.read(self._pipes[worker].fileno(), 1)
            if what == DONE:
                return None
            fault, answer = self._pipes[worker].recv()
        except (EOFError, OSError) as error:
            raise self._death(worker, call) from error
        except Exception as error:
            unreadable = f"its answer from {call} cannot be read: {type(error).__name__}: {error}"
            raise self._error(self._label(worker), unreadable, f"Correct the environment, {_GO_ON}") from error
        if fault is None:
            return answer
        ours, text, trace, key = fault
        if ours:
            raise getattr(errors, ours)(text, *([] if key is None else [key]))
        advice = f"Correct the environment, {_GO_ON}\nIn the worker:\n{trace}"
        raise self._error(self._label(worker), f"{call} raised {text}", advice)

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
        return self._error(self._label(worker), f"{what} during {call}", advice)

    def _label(self, worker: int) -> str:
        """Its number, and its environments where they are several."""
        share = self._shares[worker]
        return str(worker) if len(share) == 1 else f"{worker} (environments {share[0]} to {share[-1]})"

    def _error(self, worker: str, what: str, advice: str) -> EnvWorkerError:
        return EnvWorkerError(f"env.id={self._name!r}, worker {worker}: {what}. {_AFTER} {advice}")


def _send(pipe: Pipe, call: str, argument: Any) -> None:
    os.write(pipe.fileno(), CALL)
    pipe.send((call, argument))


def _end(owner: int, pipes: Sequence[Pipe], processes: Sequence[BaseProcess], signs: selectors.BaseSelector) -> None:
    if os.getpid() != owner:  # a forked copy of us
        return
    signs.close()
    for pipe in pipes:
        with contextlib.suppress(OSError):
            os.write(pipe.fileno(), END)
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
