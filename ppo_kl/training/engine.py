"""How a gradient step is run. Acceleration wraps the step and never enters it: eager and compiled call the same one."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import time
import types
import warnings
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch

from ppo_kl.errors import EngineWarning

Step = Callable[..., None]

_TRACE = "trace_autograd_ops"
MAX_GRAPHS = 8
"""Compiled for as many shapes of a batch; whatever has yet another shape is run eagerly."""


class CompiledStep:
    """A step as one graph, made by `torch.compile` when it is first called with tensors of a shape.

    Whoever calls says by a key what the graph depends on; it is not looked at again in every call, which would cost as
    much as a third of the step. A step that cannot be compiled is run eagerly, with a warning that says why.

    Args:
        step: reads and writes tensors alone, in place, and whatever else it looks at never changes.
        device: of the tensors.
        dynamic: whether one graph serves all shapes.
    """

    def __init__(self, step: Step, device: torch.device, *, dynamic: bool = False) -> None:
        self._step, self._device, self._dynamic = step, device, dynamic
        self._graphs: dict[Hashable, Step] = {}
        self.seconds = 0.0
        """Spent on compiling, with the first call of each graph."""

    def of(self, key: Hashable) -> Step:
        """The step for arguments of this kind; compiled at its first call.

        Args:
            key: shapes, strides and dtypes of all tensors, and whatever numbers of Python's the step reads.
        """
        if key not in self._graphs:
            if len(self._graphs) >= MAX_GRAPHS:
                return self._step
            self._graphs[key] = self._graph()
        return self._graphs[key]

    def _graph(self) -> Step:
        graph: Step | None = None

        def run(*arguments: Any) -> None:
            nonlocal graph
            if graph is None:
                graph = self._compiled_by(arguments)
            else:
                graph(*arguments)

        return run

    def _compiled_by(self, arguments: tuple[Any, ...]) -> Step:
        """Run the step once, and answer how to run it from now on."""
        begin = time.perf_counter()
        try:
            if (reason := cannot_compile(self._device)) is not None:
                raise RuntimeError(reason)
            graph = _compiled(self._step, self._device, self._dynamic)
            with _traced_gradients(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyTorch about its own ways of tracing
                graph(*arguments)
        except Exception as error:
            # Nothing was moved: a graph runs as a whole or not at all. What the step itself raises, it raises here.
            self._step(*arguments)
            graph = self._step
            warnings.warn(
                f"runtime.compile: gradient steps run eagerly, several times slower, because the step could not be "
                f"compiled: {_reason(error)}; runtime.compile=off does not try",
                EngineWarning,
                stacklevel=2,
            )
        self.seconds += time.perf_counter() - begin
        return graph


def cannot_compile(device: torch.device) -> str | None:
    """Why nothing can be compiled for this device; none where it can, as far as one can tell without trying."""
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "there is no C++ compiler (g++ or clang++)"
    folder = str(Path(torch.__file__).parent)
    if device.type == "cpu" and any(map(str.isspace, folder)):
        return f"PyTorch lies in a folder with a space in its name, which its calls of the compiler split: {folder}"
    return None


def _compiled(step: Step, device: torch.device, dynamic: bool) -> Step:
    # A function of its own: graphs without guards are found by the code they were made of.
    function = getattr(step, "__func__", step)
    copy = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own = types.MethodType(copy, step.__self__) if isinstance(step, types.MethodType) else copy
    # On a CPU the small operations are called from C++ too: from Python, that takes as long as they do.
    options: dict[str, Any] = {"guard_filter_fn": _no_guards, "cpp_wrapper": device.type == "cpu"}
    compiled: Step = torch.compile(own, fullgraph=True, dynamic=dynamic or None, options=options)
    return compiled


def _no_guards(guards: list[Any]) -> list[bool]:
    return [False] * len(guards)


def gradients_are_traced() -> bool:
    """Whether this PyTorch can take `torch.autograd.grad` into a graph; `torch.func.grad` any can."""
    return hasattr(_dynamo_config(), _TRACE)


def _dynamo_config() -> Any:
    return importlib.import_module("torch._dynamo.config")  # takes a second, which only compiled steps need


def _traced_gradients() -> Any:
    return _dynamo_config().patch(**{_TRACE: True}) if gradients_are_traced() else contextlib.nullcontext()


def _reason(error: Exception) -> str:
    # Of a compiler's error the command comes first, and is long.
    text = str(error).rpartition("Output:")[-1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
