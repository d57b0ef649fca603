"""Which runs differ by their seed alone, so that they may be taken together."""

from __future__ import annotations

from collections.abc import Sequence

from ppo_kl.diagnostics.history import Run
from ppo_kl.load import flat

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
    first: dict[tuple[str, str], dict[str, object]] = {}
    named = []
    for run in runs:
        if run.config is None:
            named.append(run)
            continue
        settings = {k: v for k, v in flat(run.config).items() if k not in ASIDE and not k.startswith(ASIDE_GROUPS)}
        base = first.setdefault((run.env, run.objective), settings)
        differing = [key for key in base | settings if base.get(key) != settings.get(key)]
        named.append(run._replace(objective=run.objective + _in_words(differing, settings)))
    return named


def _in_words(keys: list[str], settings: dict[str, object]) -> str:
    if not keys:
        return ""
    shown = [f"{key.rpartition('.')[2]} {settings.get(key)}" for key in keys[:SHOWN]]
    return f" [{', '.join([*shown, f'{len(keys) - SHOWN} more'] if len(keys) > SHOWN else shown)}]"
