"""Which runs differ by their seed alone, so that they may be taken together."""

from __future__ import annotations

from collections.abc import Sequence

from ppo_kl.config import TrainConfig
from ppo_kl.diagnostics.history import Run
from ppo_kl.load import differing

ASIDE = frozenset({"seed", "runs_dir", "objective.name"})
"""Settings by which runs may differ and still be of one kind; so may where and how they ran, and what was watched."""
ASIDE_GROUPS = ("runtime.", "diagnostics.", "evaluation.")
SHOWN = 2
"""Settings that are named; of more, how many."""


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, those of one environment and objective whose settings differ with these behind the objective's name.

    The first kind keeps the plain name; the others say in what they differ from it. Runs without a readable
    configuration keep theirs.
    """
    first: dict[tuple[str, str], TrainConfig] = {}
    named = []
    for run in runs:
        if run.config is None:
            named.append(run)
            continue
        changes = differing(first.setdefault((run.env, run.objective), run.config), run.config)
        own = {k: v for k, (_, v) in changes.items() if k not in ASIDE and not k.startswith(ASIDE_GROUPS)}
        named.append(run._replace(objective=run.objective + _in_words(own)))
    return named


def _in_words(settings: dict[str, object]) -> str:
    if not settings:
        return ""
    shown = [f"{key.rpartition('.')[2]} {value}" for key, value in settings.items()][:SHOWN]
    return f" [{', '.join([*shown, f'{len(settings) - SHOWN} more'] if len(settings) > SHOWN else shown)}]"
