"""`ppo-kl export`."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

from ppo_kl.imports import import_modules


def export(
    run: Annotated[str, tyro.conf.Positional],
    /,
    to: str | None = None,
    format: Literal["safetensors", "onnx", "both"] = "both",
    episodes: int = 10,
    force: bool = False,
    plugin: tuple[str, ...] = (),
) -> int:
    """Write a trained agent as files that others act with, checked to act as the agent does.

    Args:
        run: a run folder (its newest checkpoint) or a checkpoint.
        to: the folder; none: RUN/export.
        format: safetensors: weights and what loads them; onnx: one graph from observation to action; both.
        episodes: played for the return in the model card; 0: none.
        force: write also into a folder that holds something else, which stays.
        plugin: modules to import first, for an agent whose objective, environment or network is not one of ours.
    """
    import_modules(plugin, "--plugin")
    from ppo_kl.export import export_run

    done = export_run(run, to, format, episodes=episodes, force=force)
    print(f"{done.folder}: {', '.join(done.files)}")
    if "policy.safetensors" in done.files:
        print("policy.safetensors: actions and distributions equal the agent's, bit for bit")
    if done.onnx_difference is not None:
        print(f"policy.onnx: discrete actions equal, continuous numbers to {done.onnx_difference:.1g}, in ONNX Runtime")
    return 0


def main(arguments: list[str]) -> int:
    """Write a trained agent as files."""
    return tyro.cli(export, args=arguments, prog="ppo-kl export")
