"""`ppo-kl ablate`: a study, from its plan to its results."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ppo_kl.commands import report
from ppo_kl.config.ablation import AblationConfig
from ppo_kl.config.checked import nearest
from ppo_kl.errors import ConfigError, OutputError
from ppo_kl.imports import import_modules
from ppo_kl.load import load_study, to_yaml, value_of


def ablate(
    config: str | None = None,
    env: str | None = None,
    objective: str | None = None,
    seeds: int | None = None,
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    arms: str | None = None,
    name: str | None = None,
    folder: Path | None = None,
    known: tyro.conf.UseAppendAction[tuple[Path, ...]] = (),
    parallel: int | None = None,
    executor: Literal["local", "ray", "slurm"] = "local",
    address: str | None = None,
    slurm: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False,
    plugin: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
) -> int:
    """Run objectives × environments × seeds, and whatever else is varied.

    A finished run's small result is kept at once in FOLDER/results: run again, and only what is missing is run, also on
    another machine to which these files were brought. Every run is one process with one thread.

    Args:
        config: the study: a file, or a name in configs/ablation, as smoke or classic.
        env: environments, as cartpole,hopper; in the place of the study's.
        objective: objectives, as clip,kl_adaptive; in the place of the study's arms.
        seeds: how many runs each has.
        set: KEY=VALUE for all runs, KEY=V1,V2,... for one arm of each value; once or more.
        arms: run these of the study's arms alone for now, as clip,kl_adaptive; the others count as missing.
        name: of the study; its folder is runs/ablation/NAME.
        folder: another folder for it.
        known: a folder with results of the same study, which are not run once more; once or more.
        parallel: runs side by side; none: one for each core.
        executor: where runs are run: local, ray, or slurm by way of submitit. The results are the same.
        address: of a Ray cluster, as auto; none: one on this machine.
        slurm: KEY=VALUE for submitit, as slurm_partition=cpu, or cluster=local; once or more.
        dry_run: show what would be run, and about how long that takes.
        plugin: a module to import first, once or more.
    """
    if parallel is not None and parallel < 1:
        raise ConfigError(f"--parallel={parallel}: allowed: >= 1")
    import_modules(plugin, "--plugin")
    study = _study(config, env, objective, seeds, set, name)
    from ppo_kl.ablation.plan import plan

    planned = plan(study)
    console = Console(highlight=False)
    for notice in planned.notices:
        console.print(f"ppo-kl: notice: {notice}", markup=False, soft_wrap=True)
    folder = Path("runs") / "ablation" / study.name if folder is None else folder
    from ppo_kl.ablation.execute import EXECUTORS, Options, missing
    from ppo_kl.ablation.run import RESULTS
    from ppo_kl.ablation.study import PLAN, plan_as_json

    known = tuple(map(_results_in, known))
    wanted = _wanted(arms, planned.arms)
    if dry_run:
        left = missing(planned, [folder / RESULTS, *known])
        _show(planned, left, wanted, parallel, console)
        return 0
    from ppo_kl.ablation.carry_out import carry_out
    from ppo_kl.training import run_folder

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--folder {folder}: cannot be made: {error}; nothing was run") from error
    options = Options(parallel, address, tuple((key, value_of(value)) for key, value in map(_pair, slurm)))
    with run_folder.claimed(folder):
        run_folder.write_text(folder / "study.yaml", to_yaml(study))
        run_folder.write_text(folder / PLAN, plan_as_json(planned))
        outcome = carry_out(planned, folder, EXECUTORS[executor], options, known, plugin, wanted, console)
    for line in outcome.failed:
        console.print(f"ppo-kl: failed twice: {line}", markup=False, soft_wrap=True)
    unfinished = outcome.left
    console.print(
        f"{folder}: {outcome.finished} of {len(planned.points)} runs are finished"
        + (f"; the same command runs the {unfinished} that are missing" if unfinished else ""),
        markup=False,
        soft_wrap=True,
    )
    if outcome.finished and not outcome.signal:
        try:
            console.print(f"Report: {report.make(folder)}", markup=False, soft_wrap=True)
        except ConfigError as error:  # without its extra, which training needs not
            console.print(f"ppo-kl: notice: no report: {error}", markup=False, soft_wrap=True)
    return 128 + outcome.signal if outcome.signal else 1 if unfinished else 0


def _study(
    config: str | None,
    env: str | None,
    objective: str | None,
    seeds: int | None,
    changed: Sequence[str],
    name: str | None,
) -> AblationConfig:
    """The study in a file, or one of command-line options alone; options win."""
    if config is None and objective is None:
        raise ConfigError("nothing to compare: give --config, or --objective as clip,kl_adaptive")
    given: dict[str, Any] = {}
    if env is not None:
        given["envs"] = tuple(env.split(","))
    if objective is not None:
        given |= {"objectives": tuple(objective.split(",")), "arms": {}}
    if seeds is not None:
        given["seeds"] = seeds
    if name is not None:
        given["name"] = name
    base = None if config is None else load_study(config)
    fixed = {} if base is None else dict(base.set)
    grid = {} if base is None else dict(base.grid)
    arms, for_env = (
        {k: dict(v) for k, v in part.items()} for part in (({}, {}) if base is None else (base.arms, base.for_env))
    )
    elsewhere = [*arms.values(), *for_env.values()]
    for key, text in map(_pair, changed):
        values = tuple(map(_value, text.split(","))) if not text.startswith("[") else (_value(text),)
        if key == "seed":
            raise ConfigError(f"--set {key}={text}: seeds are counted by --seeds")
        for settings in (fixed, grid, *elsewhere):
            settings.pop(key, None)
        # Of an objective's settings one value too is for the arms that have it.
        if len(values) > 1 or key.startswith("objective."):
            grid[key] = values
        else:
            fixed[key] = values[0]
    given |= {"set": fixed, "grid": grid}
    if base is None:
        return AblationConfig(**given)
    if env is not None or objective is not None or changed:
        given |= {"published": {}, "published_in": ""}  # is of the study as the file has it
    envs = given.get("envs", base.envs)
    given["for_env"] = {env: settings for env, settings in for_env.items() if env in envs}
    return dataclasses.replace(base, **{"arms": arms, **given})


def _value(text: str) -> Any:
    """What a word of --set means; 1e5 is a whole number too."""
    value = value_of(text)
    return int(value) if isinstance(value, float) and value.is_integer() and "." not in text else value


def _wanted(arms: str | None, known: Sequence[str]) -> list[str]:
    """The arms that are to be run now."""
    if arms is None:
        return list(known)
    named = [arm.strip() for arm in arms.split(",")]
    for arm in named:
        if arm not in known:
            raise ConfigError(f"--arms: {arm!r} is no arm of this study{nearest(arm, known)}; nothing was run")
    return named


def _results_in(folder: Path) -> Path:
    """A folder of results, or that of the study which has it."""
    from ppo_kl.ablation.run import RESULTS

    found = folder / RESULTS if (folder / RESULTS).is_dir() else folder
    if not any(found.glob("*.json")):
        raise ConfigError(f"--known {folder}: there are no results in it; name a study's folder, or its {RESULTS}")
    return found


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"{text!r}: expected KEY=VALUE")
    return key, value


def _show(planned: Any, left: Any, wanted: Sequence[str], parallel: int | None, console: Console) -> None:
    """The plan as tables: what there is, what is missing, what would be run now, and about how long that takes."""
    from ppo_kl.ablation.estimate import in_words, seconds_of
    from ppo_kl.envs.cores import cores_allowed

    points = [point for point in left if point.arm in wanted]
    for title, key, names in (("arm", "arm", planned.arms), ("environment", "env", planned.study.envs)):
        console.print(_counts(title, key, names, planned, left, points))
        console.print()
    side_by_side = min(parallel or cores_allowed(), max(len(points), 1))
    about = in_words(seconds_of(points) / side_by_side)
    console.print(f"{len(points)} runs to do, {side_by_side} side by side: about {about}")


def _counts(title: str, key: str, names: Sequence[str], planned: Any, left: Any, points: Any) -> Table:
    table = Table(title, box=None)
    for column in ("runs", "finished", "to do now", "steps of a run"):
        table.add_column(column, justify="right")
    for name in names:
        mine, missing, now = ([p for p in some if getattr(p, key) == name] for some in (planned.points, left, points))
        steps = sorted({point.config.total_steps for point in mine})
        shown = " to ".join(f"{n:,}" for n in dict.fromkeys((steps[0], steps[-1]))) if steps else "as another arm"
        table.add_row(name, *map(str, (len(mine), len(mine) - len(missing), len(now))), shown)
    return table


def main(arguments: list[str]) -> int:
    """Run a study."""
    return tyro.cli(ablate, args=arguments, prog="ppo-kl ablate")
