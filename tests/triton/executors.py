"""Where a kernel test runs: in the interpreter, as compiled code for three architectures, on a GPU, in plain PyTorch.

A test marked ``@on(...)`` is an ordinary test function; its body runs in a process of its own kind, since Triton
decides at import whether kernels are interpreted, and a driver that runs compiled code on the CPU is no guest for other
tests.
There is one such process per kind, started when first needed.
"""

from __future__ import annotations

import functools
import inspect
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

COMPILED = ("sm_80", "sm_90", "sm_100")  # the compiled PTX runs on the CPU
EVERYWHERE = ("interpreter", *COMPILED, "gpu")
NEEDS_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
_KIND = "MULTICONTRAST_TEST_EXECUTOR"


def on(*kinds: str, slow: tuple[str, ...] = ()) -> Callable:
    """Runs the decorated test once on each of ``kinds``, on those of ``slow`` under that marker.

    Other parametrisation is left to pytest.
    """

    def decorate(function: Callable) -> Callable:
        if _KIND in os.environ:  # in the process that runs the body
            return function

        @functools.wraps(function)
        def send(executor: str, **arguments: object) -> None:
            module = inspect.getmodule(function)
            _process(executor).submit(_run, module.__name__, function.__name__, arguments).result()

        signature = inspect.signature(function)
        first = inspect.Parameter("executor", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        send.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])
        del send.__wrapped__  # or pytest would look through it
        marks = {"gpu": NEEDS_A_GPU} | {kind: [pytest.mark.slow] for kind in slow}
        marked = [pytest.param(kind, marks=marks.get(kind, [])) for kind in kinds]
        return pytest.mark.parametrize("executor", marked)(send)

    return decorate


def device() -> str:
    """Where the tensors of a test live."""
    return "cuda" if os.environ[_KIND] == "gpu" else "cpu"


def kind() -> str:
    """Which executor runs this test."""
    return os.environ[_KIND]


def emulated(**options: object) -> None:
    """Sets the emulator's options, such as ``noise``, for the launches that follow; nothing to set elsewhere."""
    if kind().startswith("sm_"):
        from ptx import driver

        driver.install(kind().replace("sm_", "cuda:"), **options)


@functools.cache
def _process(kind: str) -> ProcessPoolExecutor:
    # Triton reads at import whether to interpret kernels, and the fork server has imported it.
    method = "spawn" if kind in ("interpreter", "gpu") else "forkserver"
    return ProcessPoolExecutor(1, multiprocessing.get_context(method), initializer=_prepare, initargs=(kind,))


def _prepare(kind: str) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    os.environ[_KIND] = kind
    os.environ["MULTICONTRAST_BACKEND"] = "torch" if kind == "torch" else "triton"
    if kind == "interpreter":
        os.environ["TRITON_INTERPRET"] = "1"
        _remember_in_the_interpreter()
    import torch

    torch.set_num_threads(1)


def _end_with_the_parent() -> None:
    """A worker of pytest that is killed at the end would leave its executors behind, a gigabyte each."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _remember_in_the_interpreter() -> None:
    """Halves the interpreter's time. A launch replaces Triton's language, and so does, for 2 ms, each call of a device
    function within it: here only the first call of each. The NumPy type of a Triton type is looked up once, too."""
    from triton.runtime import interpreter

    patch, find = functools.cache(interpreter._patch_lang), interpreter._get_np_dtype
    found: dict[str, object] = {}

    def call(self: interpreter.InterpretedFunction, *arguments: object, **named: object) -> object:
        patch(self.fn)
        return self.rewrite()(*arguments, **named)

    def numpy_type(kind: interpreter.tl.dtype) -> object:
        name = kind.scalar.name
        return found[name] if name in found else found.setdefault(name, find(kind))

    interpreter.InterpretedFunction.__call__ = call
    interpreter._get_np_dtype = numpy_type


def _run(module: str, name: str, arguments: dict) -> None:
    import importlib

    import torch

    torch.manual_seed(0)
    emulated()
    test = getattr(importlib.import_module(module), name)
    test(**arguments)
