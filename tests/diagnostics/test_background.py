"""Writing in a thread: in order, and what fails there is heard of."""

import threading

import pytest

from ppo_kl.diagnostics.background import InBackground


class Log:
    """A writer in memory that refuses the iterations `refused`."""

    def __init__(self, refused=()):
        self.refused, self.written, self.threads, self.closed = refused, [], set(), []

    def write(self, steps, iteration, metrics, histograms):
        self.threads.add(threading.current_thread())
        if iteration in self.refused:
            raise OSError(f"no space left for iteration {iteration}")
        self.written.append((steps, iteration, metrics, histograms))

    def close(self, finished):
        self.closed.append(finished)


def test_all_that_is_handed_over_is_written_in_order_by_another_thread():
    log = Log()
    writer = InBackground(log)
    rows = [(10 * i, i, {"kl/forward": 0.1 * i}, {}) for i in range(50)]
    for row in rows:
        writer.write(*row)
    writer.close(True)
    assert log.written == rows
    assert log.closed == [True]
    assert log.threads
    assert threading.current_thread() not in log.threads
    assert not any(thread.is_alive() for thread in log.threads)


def test_a_failure_is_raised_by_the_next_iteration():
    log = Log(refused={2})
    writer = InBackground(log)
    writer.write(10, 1, {})
    writer.write(20, 2, {})
    with pytest.raises(OSError, match="iteration 2"):
        writer.write(30, 3, {})
    writer.close(False)  # said once
    assert [iteration for _, iteration, *_ in log.written] == [1]
    assert log.closed == [False]


def test_a_failure_of_the_last_iteration_is_raised_by_closing_which_closes_all_the_same():
    log = Log(refused={1})
    writer = InBackground(log)
    writer.write(10, 1, {})
    with pytest.raises(OSError, match="iteration 1"):
        writer.close(True)
    assert log.closed == [False]  # such a run has not finished


def test_training_does_not_wait_for_the_iteration_that_is_being_written():
    may_write = threading.Event()

    class Slow(Log):
        def write(self, *row):
            may_write.wait(10)
            super().write(*row)

    log = Slow()
    writer = InBackground(log)
    writer.write(10, 1, {})
    assert log.written == []
    may_write.set()
    writer.close(True)
    assert len(log.written) == 1
