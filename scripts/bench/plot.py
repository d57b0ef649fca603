"""What `run.py` measured, as a picture: python scripts/bench/plot.py results.jsonl --out docs/images/speed.png

A panel for each workload, a bar for each contestant (median, and a line from the least to the most), the environment
stepped alone as the limit. Bars end at twice the fastest that learns; the number beside them is the whole.
"""

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from results import BASE, Row, by_contestant, ratio, read, spread

from ppo_kl.bench.workloads import WORKLOADS

OURS, THEIRS, LIMIT = "#1f6fb4", "#9aa5b1", "#d9dee3"
LIMITS = "bare-"
"""How the names of what learns nothing begin."""


def draw(ax: Axes, rows: list[Row], workload: str) -> None:
    """One workload, fastest on top."""
    found = {name: runs for name, runs in by_contestant(rows, workload).items() if spread(runs, "steps_per_s")}
    learning = [spread(runs, "steps_per_s").high for name, runs in found.items() if not name.startswith(LIMITS)]
    edge = 2 * max(learning, default=float("inf"))
    for place, (name, runs) in enumerate(found.items()):
        low, high = (speeds := spread(runs, "steps_per_s")).low, speeds.high
        color = OURS if name.startswith("ppo_kl") else LIMIT if name.startswith(LIMITS) else THEIRS
        ax.barh(
            place,
            min(speeds.median, edge),
            color=color,
            height=0.72,
            hatch="///" if color == LIMIT else None,
            edgecolor="white",
        )
        if high <= edge:
            ax.plot([low, high], [place, place], color="#333333", linewidth=1)
        times = ratio(runs, found.get(BASE, []))
        said = f"{speeds.median:,.0f}" + (f"  {times:.1f}×" if times and not name.startswith(LIMITS) else "")
        ax.annotate(said, (min(high, edge), place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_yticks(range(len(found)), found, fontsize=8)
    ax.invert_yaxis()
    ax.margins(x=0.22)
    ax.set_xlim(left=0)
    ax.tick_params(axis="x", labelsize=8)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k")
    ax.spines[["top", "right"]].set_visible(False)
    of = WORKLOADS[workload]
    ax.set_title(f"{workload}: {of.env_id} × {of.num_envs}, minibatches of {of.minibatch_size}", fontsize=9, loc="left")


def picture(rows: list[Row], out: Path) -> None:
    workloads = sorted({row["workload"] for row in rows})
    bars = [len(by_contestant(rows, workload)) for workload in workloads]
    figure, axes = plt.subplots(
        len(workloads),
        1,
        figsize=(8, 0.26 * sum(bars) + 0.75 * len(workloads) + 0.3),
        height_ratios=bars,
        squeeze=False,
        layout="constrained",
    )
    for ax, workload in zip(axes[:, 0], workloads, strict=True):
        draw(ax, rows, workload)
    axes[-1, 0].set_xlabel(f"environment steps per second (× {BASE} in the same repeat)", fontsize=8)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("speed.png"))
    args = parser.parse_args()
    picture(read(args.results), args.out)


if __name__ == "__main__":
    main()
