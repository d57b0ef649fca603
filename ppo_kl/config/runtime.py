"""Where and how the computation runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ppo_kl.config.checked import Settings, setting
from ppo_kl.config.env import MAX_PROCESSES
from ppo_kl.errors import ConfigError


@dataclass(frozen=True)
class RuntimeConfig(Settings):
    """Device, compilation, threads, checkpoints."""

    device: str = "auto"
    """cpu, cuda, cuda:<index>, or auto: cuda where there is one."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether gradient steps are compiled, several times faster after 5 to 30 s; auto: where that pays off."""
    cuda_graphs: bool = True
    """On a CUDA GPU: whether the kernels of a gradient step are launched at once, as a CUDA graph; the same numbers."""
    num_threads: int = setting(1, at_least=1, at_most=1024)
    """CPU threads inside one PyTorch operation, set by `train`; small networks are fastest with 1."""
    workers: Literal["auto"] | int = setting("auto", at_least=0, at_most=MAX_PROCESSES)
    """How many processes beside this one step a share of the copies of a sync environment, each on one thread; 0: all
    are stepped here; auto: `train` measures how many pay, an `Agent` made by hand takes 0."""
    checkpoint_every: int = setting(20, at_least=1, at_most=1_000_000_000)
    """Iterations between checkpoints; the end of a run, SIGINT, SIGTERM and SIGHUP always save one."""
    keep_checkpoints: int = setting(3, at_least=1, at_most=1_000_000_000)
    """How many of the newest stay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name, _, index = self.device.partition(":")
        if self.device not in ("auto", "cpu", "cuda") and not (name == "cuda" and index.isdecimal()):
            raise ConfigError(f"device={self.device!r}: allowed: auto, cpu, cuda, cuda:<index>", "device")

    @property
    def num_workers(self) -> int:
        """Processes beside this one, where nobody has measured how many pay: none."""
        return 0 if self.workers == "auto" else self.workers
