"""Blocks that keep little for backward: their inputs, or also attention's outputs, on the device or in host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from ...adapters.parts import Delta
from ...planning.layout import SELECTIVE
from ...streaming.saved_tensors import offloaded
from .streamed import How
from .unread import Recomputing, has_gradient

STREAMS = ("img", "txt", "x")  # arguments that blocks change in place
# Kernels of attention. On CUDA and ROCm shape and dtype decide which one runs; a CPU has one.
ATTENTION = [
    getattr(torch.ops.aten, name).default
    for name in ("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
                 "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu")
    if hasattr(torch.ops.aten, name)
]  # fmt: skip
Kept = list[tuple[tuple, list[int]]]  # attention's outputs in the order of its calls, and the versions of these tensors
Contexts = tuple[AbstractContextManager, AbstractContextManager]  # for a block's first run and its recomputation
_attention_mode: ContextVar[TorchDispatchMode | None] = ContextVar("_attention_mode", default=None)


def attended(attention: Callable, *args, **kwargs):
    """Run ``attention``. In a block that keeps its output, the recomputation returns the kept output instead.

    Only operations inside this call are intercepted. Intercepting all operations of a block would take 10% more
    processor time, and a card would wait for it.
    """
    mode = _attention_mode.get()
    if mode is None:
        return attention(*args, **kwargs)
    with mode:
        return attention(*args, **kwargs)


def keeps_attention() -> bool:
    """Whether the block that runs now keeps attention's output, or is given it."""
    return _attention_mode.get() is not None


class Keeping(TorchDispatchMode):
    """Keeps attention's outputs in the first run."""

    def __init__(self, kept: Kept):
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        if function in ATTENTION:
            self.kept.append(_alias(outputs))
        return outputs


class Giving(Keeping):
    """Returns the kept outputs in the recomputation, instead of running attention again."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function not in ATTENTION:
            return function(*args, **(kwargs or {}))
        outputs, versions = self.kept.pop(0)
        if versions != _versions(outputs):
            raise RuntimeError("what attention gave was changed in place, and cannot be kept for recomputation")
        return outputs


@contextmanager
def _attended_in(mode: TorchDispatchMode) -> Iterator[None]:
    """A context in which ``attended`` runs attention under ``mode``."""
    before = _attention_mode.set(mode)
    try:
        yield
    finally:
        _attention_mode.reset(before)


def _alias(outputs: tuple) -> tuple[tuple, list[int]]:
    """Tensors on the same memory that autograd does not touch, and their versions, which both share."""
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        aliases = tree_map_only(Tensor, Tensor.detach, outputs)
    return aliases, _versions(aliases)


def _versions(outputs: tuple) -> list[int]:
    return [output._version for output in outputs if isinstance(output, Tensor)]


def _keeping_attention() -> Contexts:
    """Contexts in which attention runs once.

    torch's own create_selective_checkpoint_contexts cannot be used: from torch 2.14 on (2.11 did not) it raises if the
    second run calls any operation more often than the first, which happens when weights come through a ring of buffers.
    """
    kept: Kept = []
    return _attended_in(Keeping(kept)), _attended_in(Giving(kept))


class Adapted:
    """The adapters on a model's layers, as far as recomputation depends on them."""

    def __init__(self, deltas: dict[str, Delta]):
        self.sources = {getattr(delta, "adapters", None) for delta in deltas.values()}

    def draw(self) -> bool:
        """Whether one of them draws random numbers now. Of those that are not ours nobody knows, so they may."""
        return any(source is None or source.draws for source in self.sources)

    def as_now(self, run: Callable) -> Callable:
        """``run`` with the adapters at the strength that they have now, whichever thread calls it."""
        strengths = [(source, source.strength) for source in self.sources if source is not None]

        def later(*args, **kwargs):
            with ExitStack() as stack:
                for source, strength in strengths:
                    stack.enter_context(source.at_strength(strength))
                return run(*args, **kwargs)

        return later


class Recompute:
    """Runs a block by the layout that ``how`` has at that moment. Block numbers count double blocks first.

    A generator's state is kept and set back for the recomputation only if an adapter draws random numbers, because that
    takes time in every block. Autograd recomputes in threads of its own, where the adapters have to act as before.
    ``unread``: the Linears of each block that a recomputation need not multiply, see ``unread.py``.
    """

    def __init__(self, how: How, adapted: Adapted | None = None):
        self.how, self.adapted = how, adapted or Adapted({})
        self.unread: dict[int, frozenset[nn.Module]] = {}

    def __call__(self, original: Callable, number: int, *args, **kwargs):
        layout = self.how.layout
        if not torch.is_grad_enabled() or not layout.recomputes(number):
            return original(*args, **kwargs)
        streams = {name: kwargs.pop(name) for name in STREAMS if name in kwargs}
        run = partial(_on_copies, self.adapted.as_now(original), args[1:], kwargs, tuple(streams))
        unread = frozenset() if has_gradient(kwargs.get("vec")) else self.unread.get(number, frozenset())
        contexts = partial(self._contexts, layout.checkpointing == SELECTIVE, unread)
        with offloaded() if layout.offload_activations else nullcontext():
            # Passed as arguments of their own, so that hooks on saved tensors, which count or move them, see these too.
            tensors = *args[:1], *streams.values()
            return checkpoint(
                run, *tensors, use_reentrant=False, context_fn=contexts, preserve_rng_state=self.adapted.draw()
            )  # fmt: skip

    @staticmethod
    def _contexts(keeps_attention: bool, unread: frozenset[nn.Module]) -> Contexts:
        if not keeps_attention:
            return nullcontext(), Recomputing(unread)
        first, second = _keeping_attention()
        return first, _both(second, Recomputing(unread))


@contextmanager
def _both(first: AbstractContextManager, second: AbstractContextManager) -> Iterator[None]:
    with first, second:
        yield


def _on_copies(original: Callable, args: tuple, kwargs: dict, names: tuple[str, ...], *streams: Tensor):
    """Run a block on copies of the streams that it changes in place: its first argument, or those in ``names``."""
    copies = [stream.clone() for stream in streams]
    first = copies[: len(copies) - len(names)]
    return original(*first, *args, **dict(zip(names, copies[len(first) :], strict=True)), **kwargs)
