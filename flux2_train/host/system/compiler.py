"""torch's compiler: whether it works here, and which errors are its own."""

from __future__ import annotations

from functools import cache

import comfy.model_management
import torch
from torch import Tensor

from ...errors import UserError
from .memory import is_out_of_memory

BACKEND = "inductor"
MODULES = ("torch._dynamo", "torch._inductor", "torch._functorch", "torch.fx.experimental", "triton")


def _sample(x: Tensor) -> Tensor:
    return torch.nn.functional.silu(x) * x + 1


@cache
def problem(device: torch.device) -> str:
    """Why nothing can be compiled for a device, in the compiler's own words; empty if it works.

    It is tried on three operations: a GPU needs Triton, a CPU a C++ compiler, and either may be there and not work.
    """
    try:
        with torch.inference_mode(False), torch.no_grad():
            x = torch.linspace(-1, 1, 100, device=device)
            found, expected = torch.compile(_sample, backend=BACKEND, fullgraph=True)(x), _sample(x)
    except Exception as error:  # whatever is missing, the run goes on without it
        return reason_of(error)
    return "" if torch.allclose(found, expected, atol=1e-5) else "what it compiles computes wrong numbers"


def is_the_compilers(error: BaseException) -> bool:
    """Whether an exception comes from torch's compiler, as its class shows."""
    return any(kind.__module__.startswith(MODULES) for kind in type(error).__mro__)


def may_be_the_compilers(error: BaseException) -> bool:
    """Whether an exception of a step with compiled blocks may come from there: not Cancel, and not out of memory."""
    known = isinstance(error, (UserError, comfy.model_management.InterruptProcessingException))
    return isinstance(error, Exception) and not known and not is_out_of_memory(error)


def reason_of(error: BaseException) -> str:
    """The first line of an exception, for a sentence. torch wraps what a compiler raises."""
    error = getattr(error, "inner_exception", None) or error
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:200].rstrip('.')}" if line else type(error).__name__
