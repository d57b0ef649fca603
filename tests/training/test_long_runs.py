"""What a process holds stays the same, however many iterations it makes."""

import os
import sys
from pathlib import Path

import pytest
from toy_envs import small_agent

MB = 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def held() -> tuple[int, int, int]:
    """Resident bytes, open files, threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), *(len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_files_and_threads_do_not_grow_with_iterations(workers):
    agent = small_agent(runtime__workers=workers, diagnostics__gradient_every=10, diagnostics__histogram_every=10)
    try:
        for _ in range(50):
            agent.iterate()
        before, *counts = held()
        for _ in range(200):
            agent.iterate()
        after, *then = held()
    finally:
        agent.close()
    # A gradient's graph that is kept of each would be some 100 kB. `scripts/bench/scale.py` looks at 2,000 iterations.
    assert after - before < 2 * MB
    assert then == counts
