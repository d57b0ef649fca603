"""How a gradient step is run. Acceleration wraps the step and never enters it: eager and compiled call the same one."""

from __future__ import annotations

import contextlib
import copy
import importlib
import shutil
import time
import types
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ppo_kl.batch import Batch, tensors_in
from ppo_kl.errors import EngineWarning

Step = Callable[..., None]
Guards = Literal["none", "shapes", "all"]

_TRACE = "trace_autograd_ops"
MAX_GRAPHS = 8
"""Compiled for as many shapes of a batch; whatever has yet another shape is run eagerly."""
MAX_TRIES = 2
"""Times that one of them is compiled from the beginning; PyTorch compiles anew eight times by itself before."""
GUARDS: dict[Guards, Callable[[Sequence[Any]], list[bool]]] = {
    "none": lambda guards: [False] * len(guards),
    "shapes": lambda guards: [guard.guard_type == "SHAPE_ENV" for guard in guards],
    "all": lambda guards: [True] * len(guards),
}
"""Which of the conditions that PyTorch found on its way through a step are kept."""


REPLAY_WARM_UPS = 3
"""Steps made before one is captured: in the first ones, libraries take memory in ways that no CUDA graph can hold."""


class CompiledStep:
    """A step as one graph, made by `torch.compile` when it is first called with tensors of a shape.

    Whoever calls says by a key what the graph depends on; it is not looked at again in every call, which would cost as
    much as a third of the step. A step that cannot be compiled is run eagerly, with a warning that says why.

    Args:
        step: reads and writes tensors alone, in place, and whatever else it looks at never changes, unless guarded.
        device: of the tensors.
        guards: what PyTorch looks at again in every call, to compile anew where it has changed: of `GUARDS`.
    """

    def __init__(self, step: Step, device: torch.device, guards: Guards = "none") -> None:
        self._step, self._device, self._guards = step, device, guards
        self._graphs: dict[Hashable, Step] = {}
        self.seconds = 0.0
        """Spent on compiling, with the first call of each graph."""
        self.failure: str | None = None
        """Why steps are run eagerly after all."""

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledStep:
        # A graph writes into the tensors that it was made with.
        return CompiledStep(copy.deepcopy(self._step, memo), self._device, self._guards)

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
        tries = 0

        def run(*arguments: Any) -> None:
            nonlocal graph, tries
            if graph is not None:
                try:
                    graph(*arguments)
                    return
                except _not_run():
                    pass  # as after torch.compiler.reset(), or where what is guarded changes in every call
            begin = time.perf_counter()
            tries += 1
            graph, failure = self._compiled_by(arguments, once_more=tries <= MAX_TRIES)
            self.seconds += time.perf_counter() - begin
            if failure is not None:
                self.failure = failure
                warnings.warn(
                    "runtime.compile: gradient steps run eagerly, several times slower, because the step could not be "
                    f"compiled: {failure}; runtime.compile=off does not try",
                    EngineWarning,
                    stacklevel=2,
                )

        return run

    def _compiled_by(self, arguments: tuple[Any, ...], *, once_more: bool) -> tuple[Step, str | None]:
        """Run the step once, and answer how to run it from now on, and why not compiled, if it is not."""
        try:
            if (reason := cannot_compile(self._device)) is not None:
                raise RuntimeError(reason)
            if not once_more:
                raise RuntimeError(f"what it looks at changed {MAX_TRIES} times in a way that asks for another graph")
            graph = _compiled(self._step, self._device, self._guards)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyTorch about its own ways of tracing
                with _traced_gradients():
                    graph(*arguments)
        except Exception as error:
            # Nothing was moved: a graph runs as a whole or not at all. What the step itself raises, it raises here.
            self._step(*arguments)
            return self._step, _reason(error)
        return graph if self._guards == "none" else _compiles_again(graph), None


class ReplayedStep:
    """Steps on a CUDA GPU as CUDA graphs: the hundreds of kernels of a step are launched at once, and compute the same.

    A step that cannot be captured is launched kernel by kernel, with a warning that says why.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: dict[Hashable, Step] = {}
        self.failure: str | None = None
        """Why steps are not replayed after all."""

    def __deepcopy__(self, memo: dict[int, Any]) -> ReplayedStep:
        # A graph writes into the tensors that it was made with.
        return ReplayedStep(self._device)

    def of(self, key: Hashable, step: Step) -> Step:
        """The step for minibatches of this kind, replayed from its fourth call on.

        Args:
            key: as `CompiledStep.of`.
            step: takes a `Batch`; reads and writes tensors of the device alone, in place, and never waits for one.
        """
        if key not in self._graphs:
            if len(self._graphs) >= MAX_GRAPHS:
                return step
            self._graphs[key] = self._graph(step)
        return self._graphs[key]

    def _graph(self, step: Step) -> Step:
        calls = 0
        replay: Step | None = None

        def run(minibatch: Batch) -> None:
            nonlocal calls, replay
            calls += 1
            if calls <= REPLAY_WARM_UPS:
                step(minibatch)
                return
            if replay is None:
                replay = self._captured_or_not(step, minibatch)
            replay(minibatch)

        return run

    def _captured_or_not(self, step: Step, minibatch: Batch) -> Step:
        try:
            return _capture(step, minibatch, self._device)
        except Exception as error:  # whatever a step does that no graph can hold
            self.failure = _reason(error)
            warnings.warn(
                "runtime.cuda_graphs: gradient steps are launched kernel by kernel, several times slower for small "
                f"networks, because the step could not be captured: {self.failure}; runtime.cuda_graphs=False does "
                "not try",
                EngineWarning,
                stacklevel=4,
            )
            return step


def _capture(step: Step, minibatch: Batch, device: torch.device) -> Step:
    """The step as a CUDA graph, for minibatches laid out as this one; it is not run yet."""
    held, graph = minibatch.copied(), torch.cuda.CUDAGraph()
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    # By thread: others, as the one that writes the logs, may go on meanwhile.
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        step(held)
    places = [x for _, x in tensors_in(held)]

    def run(minibatch: Batch) -> None:
        for place, (_, x) in zip(places, tensors_in(minibatch), strict=True):
            place.copy_(x)
        with torch.cuda.device(device):
            graph.replay()

    return run


def of_any_length(tensors: Iterable[Tensor]) -> None:
    """Let one graph serve any number of rows but 1, which PyTorch always takes for something else."""
    dynamo = importlib.import_module("torch._dynamo")
    for x in tensors:
        dynamo.mark_dynamic(x, 0)


def cannot_compile(device: torch.device) -> str | None:
    """Why nothing can be compiled for this device; none where it can, as far as one can tell without trying."""
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "there is no C++ compiler (g++ or clang++)"
    folder = str(Path(torch.__file__).parent)
    if device.type == "cpu" and any(map(str.isspace, folder)):
        return f"PyTorch lies in a folder with a space in its name, which its calls of the compiler split: {folder}"
    return None


def _compiled(step: Step, device: torch.device, guards: Guards) -> Step:
    # A function of its own: graphs without guards are found by the code they were made of.
    function = getattr(step, "__func__", step)
    own = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    bound = types.MethodType(own, step.__self__) if isinstance(step, types.MethodType) else own
    # On a CPU the small operations are called from C++ too: from Python, that takes as long as they do.
    options = {"guard_filter_fn": GUARDS[guards], "cpp_wrapper": device.type == "cpu"}
    # A graph that nothing guards is of one shape: else PyTorch, which was given another one before, lets it vary.
    return _compile(bound, options, False if guards == "none" else None)


def _compile(step: Step, options: dict[str, Any], dynamic: bool | None) -> Step:
    compiled: Step = torch.compile(step, fullgraph=True, options=options, dynamic=dynamic)
    return compiled


def _compiles_again(graph: Step) -> Step:
    """The graph, which may find what is guarded changed and make another one."""

    def run(*arguments: Any) -> None:
        with _traced_gradients():
            graph(*arguments)

    return run


def _not_run() -> tuple[type[Exception], ...]:
    """What PyTorch raises instead of running a graph."""
    errors = importlib.import_module("torch._dynamo.exc")
    names = "TorchDynamoException", "FailOnRecompileLimitHit"  # the latter is no kind of the former
    return tuple(getattr(errors, name) for name in names if hasattr(errors, name))


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
