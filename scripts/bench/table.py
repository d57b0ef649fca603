"""What `run.py` measured, as Markdown: python scripts/bench/table.py results.jsonl

Medians over the repeats, with the least and the most in brackets. × is the median over the repeats of the ratio to
Stable-Baselines3 in the same repeat; a gradient step's is beside SBX as well, where it was run.
"""

import argparse
from pathlib import Path

from results import BASE, Row, Spread, by_contestant, ratio, read, spread

HEAD = ["", "steps/s", f"× {BASE}", "µs per env step", "µs per gradient step", "× sbx", "steps per CPU s", "setup s"]


def table(rows: list[Row], workload: str) -> str:
    """One workload, fastest first; what failed is named below it."""
    found = by_contestant(rows, workload)
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    failed = []
    for name, runs in found.items():
        errors = [run["error"] for run in runs if "error" in run]
        if errors:
            failed.append(f"- {name}: {len(errors)} of {len(runs)} failed: {errors[0].strip().splitlines()[-1][-200:]}")
        speeds = spread(runs, "steps_per_s")
        if speeds is None:
            continue
        cells = [
            name,
            _with_range(speeds),
            _number(ratio(runs, found.get(BASE, [])), 2),
            _median(runs, "us_per_env_step", 1),
            _median(runs, "us_per_grad_step", 0),
            _number(ratio(runs, found.get("sbx", []), "us_per_grad_step"), 2),
            _median(runs, "steps_per_cpu_s", 0),
            _median(runs, "setup_s", 1),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines + ([""] if failed else []) + failed)


def summary(rows: list[Row]) -> str:
    """All workloads side by side: steps per second, times the base, and µs per gradient step."""
    workloads = sorted({row["workload"] for row in rows})
    found = {workload: by_contestant(rows, workload) for workload in workloads}
    names = list(dict.fromkeys(row["peer"] for row in rows))
    lines = ["| steps/s, × Stable-Baselines3, µs per gradient step | " + " | ".join(workloads) + " |"]
    lines.append("|---" * (len(workloads) + 1) + "|")
    for name in names:
        cells = []
        for workload in workloads:
            runs = found[workload].get(name, [])
            speeds, times = spread(runs, "steps_per_s"), ratio(runs, found[workload].get(BASE, []))
            said = [] if speeds is None else [f"{speeds.median:,.0f}", f"{times:.1f} ×" if times else ""]
            step = spread(runs, "us_per_grad_step")
            cells.append(" · ".join(filter(None, [*said, "" if step is None else f"{step.median:,.0f} µs"])))
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def _with_range(of: Spread) -> str:
    return f"{of.median:,.0f} ({of.low:,.0f}–{of.high:,.0f})"


def _median(runs: list[Row], key: str, digits: int) -> str:
    found = spread(runs, key)
    return _number(None if found is None else found.median, digits)


def _number(x: float | None, digits: int) -> str:
    return "–" if x is None else f"{x:,.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    rows = read(parser.parse_args().results)
    for workload in sorted({row["workload"] for row in rows}):
        print(f"### {workload}\n\n{table(rows, workload)}\n")


if __name__ == "__main__":
    main()
