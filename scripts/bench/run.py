"""Every contestant on every workload, interleaved and repeated, each in a process of its own, pinned to cores.

python scripts/bench/run.py --cores 0 --repeats 3 --out results.jsonl

A line of the file is one run: what it printed, and which repeat it was of. A run that failed or took too long is kept
as failed, with the end of what it said. `table.py` and `plot.py` read the file.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent.resolve()
OURS = ["-m", "ppo_kl", "bench"]
COMPILED = [*OURS, "--runtime.compile", "on"]
SB3 = [str(HERE / "peer_sb3.py")]
SBX = [str(HERE / "peer_sbx.py")]
BARE = [str(HERE / "bare_env.py"), "--kind"]


class Contestant(NamedTuple):
    """A command, the workloads it has a part in, and how many cores it needs."""

    command: list[str]
    workloads: str = "ABC"
    cores: int = 1


CONTESTANTS = {
    "ppo_kl": Contestant([*COMPILED, "--objective", "kl_adaptive"]),
    "ppo_kl-clip": Contestant([*COMPILED, "--objective", "clip"]),
    "ppo_kl-eager": Contestant([*OURS, "--objective", "clip", "--runtime.compile", "off"]),
    "ppo_kl-native": Contestant([*COMPILED, "--objective", "kl_adaptive", "--env.vectorization", "native"], "B"),
    "sb3": Contestant(SB3),
    "sbx": Contestant(SBX),
    "sb3-2-threads": Contestant([*SB3, "--threads", "2"], "ABC", cores=2),
    "sb3-subproc": Contestant([*SB3, "--subproc"], "BC", cores=2),
    "sb3-subproc-2-threads": Contestant([*SB3, "--subproc", "--threads", "2"], "BC", cores=2),
    "ppo_kl-1-worker": Contestant([*COMPILED, "--objective", "kl_adaptive", "--runtime.workers", "1"], "C", cores=2),
    "bare-single": Contestant([*BARE, "single"]),
    "bare-sync": Contestant([*BARE, "sync"]),
    "bare-native": Contestant([*BARE, "native"], "B"),
    "bare-async": Contestant([*BARE, "async"], "C", cores=2),
}
"""By name; further settings of ours are further rows."""
STEPS = {"A": 40_960, "B": 81_920, "C": 81_920}
"""Environment steps that are timed."""


def run(command: list[str], cores: list[int], timeout: float) -> dict[str, Any]:
    """What the command printed last; or, under `error`, why there is nothing."""
    # MuJoCo writes a log into the working folder.
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that its workers end with it
            preexec_fn=partial(os.sched_setaffinity, 0, cores),
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            return {"error": f"took longer than {timeout:g} s"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    try:
        row: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": f"exit status {process.returncode}: {err[-600:]}"}
    return {"error": f"steps were not compiled: {err[-600:]}"} if row.get("compile") == "failed" else row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="0", help="numbers of the cores every run is pinned to, as 0 or 0,1")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workloads", default="ABC")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--steps", type=int, help="timed in each run; none: 40,960 of A, 81,920 of B and C")
    parser.add_argument("--timeout", type=float, default=600, help="seconds of one run")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has all of them")
    parser.add_argument("--out", type=Path, default=Path("results.jsonl"), help="is added to")
    args = parser.parse_args()
    cores = [int(core) for core in args.cores.split(",")]
    wanted = [
        (repeat, workload, name)
        for repeat in range(args.repeats)
        for workload in args.workloads
        for name in args.only
        if workload in CONTESTANTS[name].workloads and CONTESTANTS[name].cores <= len(cores)
    ]
    for done, (repeat, workload, name) in enumerate(wanted, 1):
        steps = str(args.steps or STEPS[workload])
        begin = time.time()
        options = ["--workload", workload, "--steps", steps]
        found = run([args.python, *CONTESTANTS[name].command, *options], cores, args.timeout)
        row = {**found, "peer": name, "workload": workload, "repeat": repeat, "cores": len(cores)}
        row["process_s"] = round(time.time() - begin, 1)
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        said = found.get("error") or f"{found['steps_per_s']:,.0f} steps/s"
        print(f"{done}/{len(wanted)}  {workload}  {name:22} {said}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
