"""Borrowing the graph's MODEL for training and giving it back untouched.

Three facts of ComfyUI's Flux decide what is swapped (each is pinned by a gradient test):

* its weights may not be saved by autograd: every Linear becomes a FrozenLinear plus its adapter, or a LoraLinear;
* its blocks add residuals in place, which changes what LayerNorm saved: LayerNorm gets a copy of its input;
* for the same reason a checkpointed block gets copies of its inputs, or the recomputation would start from
  tensors that the first run has already changed.

Only the ``forward`` attribute of module instances is set, through ``ModelPatcher.set_injections``, which ComfyUI
undoes and redoes whenever it moves the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import comfy.ldm.flux.layers as flux_layers
import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection, WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor, nn

from ...adapters.parts import Delta, PlainLora
from ...errors import UserError
from ...planning.layout import BLOCKS, OFF, Layout
from ...streaming.ring import Direct
from .. import contract
from ..loading import deferred
from ..system.heap import freed_at_once
from ..system.memory import unload
from . import placing
from .attention import OPTION, Kernels
from .cards import Cards, Passing, block_number
from .compiled import Compiled, while_training
from .eight_bit import EightBit
from .frozen import fetched, frozen_linear, frozen_rms_norm
from .last_block import LastBlock
from .lora_linear import lora_linear
from .recompute import Adapted, Recompute
from .routing import routed
from .streamed import SOURCE, StreamedWeights, can_stream, only, portions_of
from .unread import unread_linears

KEY = "flux2_train"
BLOCK_KINDS = (flux_layers.DoubleStreamBlock, flux_layers.SingleStreamBlock)


class Borrowed:
    """How a borrowed model runs at the moment. ``lay_out`` may change its ``layout`` between two steps.

    ``via`` copies streamed weights; None chooses the best way for the device. At most ``pinned`` bytes of them are
    pinned; 0 chooses half of the host's free memory. ``cards`` says which blocks lie on which card; None for one card.
    While ``compiled`` is on, blocks run through torch.compile in training, but for the classes in ``uncompiled``;
    ``notes`` are sentences about these that nobody has read yet. It may be turned on and off between two steps if
    ``compilable`` was true when the model was borrowed; ``ran`` says whether any block has run compiled.
    """

    def __init__(
        self, layout: Layout, via: Direct | None = None, pinned: float = 0.0, cards: Cards | None = None,
        compiled: bool = False,
    ):  # fmt: skip
        self.layout, self.via, self.pinned = layout, via, pinned
        self.compiled = self.compilable = compiled
        self.cards = cards if cards and cards.several else None
        self.notes: list[str] = []
        self.uncompiled: set[str] = set()
        self.attention = Kernels()
        self.ran = False
        self.eight_bit: EightBit | None = None  # the Linears that may be multiplied in 8 bits
        self.changed: Callable[[], None] = lambda: None
        self.streamed: StreamedWeights | None = None
        self.elsewhere: list[StreamedWeights] = []  # on the other cards

    def lay_out(self, layout: Layout) -> None:
        """Use another layout from the next step on."""
        self.layout = layout
        self.changed()

    def copied(self) -> int:
        """Bytes of weights streamed since this layout came into use."""
        return sum(weights.ring.copied for weights in self._streaming())

    def unpinned(self) -> int:
        """Bytes of streamed weights in memory that is not pinned, on a device that copies faster from pinned memory."""
        return sum(weights.unpinned for weights in self._streaming())

    def _streaming(self) -> list[StreamedWeights]:
        return [weights for weights in (self.streamed, *self.elsewhere) if weights and weights.ring]


def linears(model: ModelPatcher) -> dict[str, nn.Module]:
    """Every Linear of a MODEL's transformer by its dotted name, quantised ones (which are no nn.Linear) included."""
    modules = model.model.diffusion_model.named_modules()
    return {name: m for name, m in modules if hasattr(m, "in_features") and hasattr(m, "weight")}


def borrow(
    model: ModelPatcher, deltas: dict[str, Delta], checkpointing: bool = True
) -> AbstractContextManager[ModelPatcher]:
    """``borrow_as`` with nothing streamed; ``checkpointing`` recomputes each block instead of keeping activations."""
    return borrow_as(model, deltas, Borrowed(Layout(BLOCKS if checkpointing else OFF)))


@contextmanager
def borrow_as(
    model: ModelPatcher, deltas: dict[str, Delta], how: Borrowed, memory_required: float = 0.0
) -> Iterator[ModelPatcher]:
    """Yield a clone of ``model`` on its load device whose Linears run frozen, with ``deltas`` added by name.

    ``how`` holds its layout in memory; ``memory_required`` is the room in bytes that training needs beside the weights.
    Call it in inference mode, in which ComfyUI runs nodes.
    The model is given back untouched on every way out. Raises UserError for a compiled MODEL, and if another node's
    patch has replaced a layer's forward.
    """
    contract.require(contract.TRAINING)
    _require_uncompiled(model)
    borrowed = model.clone()
    swap = _Swap(model, deltas, how)
    borrowed.model_options["transformer_options"][OPTION] = how.attention
    borrowed.set_injections(KEY, [PatcherInjection(inject=lambda _: swap.inject(), eject=lambda _: swap.eject())])
    before = borrowed.loaded_size()
    if placing.place(borrowed, swap.away, memory_required):
        swap.lay_out = partial(swap.place_anew, borrowed)
    try:
        comfy.model_management.load_models_gpu([borrowed], memory_required=memory_required)
        swap.require_free()
        with freed_at_once(borrowed.load_device, borrowed.model_size()):
            yield borrowed
    finally:
        borrowed.eject_model()
        swap.end()
        borrowed.remove_injections(KEY)
        placing.end(borrowed, before)
        if swap.stranded:
            unload(borrowed)


@contextmanager
def training_mode() -> Iterator[None]:
    """Turn on autograd inside a node, and ComfyUI's training flag: without it RoPE runs as an op with no gradient."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        comfy.model_management.in_training = before


def _require_uncompiled(model: ModelPatcher) -> None:
    modules = [*model.object_patches.values(), *model.model.diffusion_model.modules()]
    if COMPILE_KEY in model.wrappers.get(WrappersMP.APPLY_MODEL, {}) or any(map(_is_compiled, modules)):
        raise UserError(
            "The MODEL is compiled, and compiled code keeps weights that training must not hold: wire the model into "
            "LoRA Trainer from before the node that compiles it, and compile what LoRA Apply gives."
        )


def _is_compiled(module: object) -> bool:
    """True for what ``torch.compile`` returns and for modules after their ``compile``."""
    return hasattr(module, "_torchdynamo_orig_callable") or getattr(module, "_compiled_call_impl", None) is not None


class _Swap:
    """The replacement forwards of one borrowed model; inject and eject may be called any number of times."""

    def __init__(self, model: ModelPatcher, deltas: dict[str, Delta], how: Borrowed):
        self.transformer, self.deltas, self.how = model.model.diffusion_model, deltas, how
        self.device, self.mapped = model.load_device, deferred.mapped(model)
        self.recompute = Recompute(how, Adapted(deltas))
        self.compiled = Compiled(deltas, how) if how.compilable else None
        self.doubles = len(self.transformer.double_blocks)
        self.passing = Passing(how.cards) if how.cards else None
        self.lay_out: Callable[[], None] = self._stream
        self.swapped: list[nn.Module] = []
        self.stranded = False  # whether the device had no room for streamed weights when they were given back
        self.taken = ""  # the name of a layer whose forward another pack has replaced
        self.patched = model.patches.keys()  # names of weights that a LoRA changes
        self.unmovable = ""  # the name of a layer whose weight cannot be brought to another card
        unknown = deltas.keys() - {name for name, _ in self.transformer.named_modules()}
        if unknown:
            raise UserError(f"The model has no layers named {', '.join(sorted(unknown)[:5])}.")

    def require_free(self) -> None:
        """Raise UserError for what ``inject`` has found: another pack's forward, or a weight that cannot be moved."""
        if self.taken:
            raise UserError(
                f"The MODEL already runs {self.taken} through another node's patch (a LoRA in ComfyUI's own bypass "
                "mode, for example); wire the model into LoRA Trainer without it, or merge the LoRA instead."
            )
        if self.unmovable:
            raise UserError(
                f"{self.unmovable} cannot lie on another card: only weights in ComfyUI's own formats can, without a "
                "LoRA on them. Merge the LoRA into the model's file, load another file, or set cards of Memory to 1."
            )

    def inject(self) -> None:
        modules = list(self.transformer.named_modules())  # listed again: object patches may have changed the tree
        self.taken = self.taken or next((name for name, module in modules if _is_taken(module)), "")
        for name, module in reversed(modules):  # a block after its layers, whose forwards it asks for
            forward = self._replacement(module, name)
            if forward is not None and not _is_taken(module):
                module.forward = forward
                self.swapped.append(module)
        self._stream()
        if self.how.eight_bit:
            self.how.eight_bit.attach(self._layers())
        self.how.changed = self.lay_out

    def away(self) -> list[nn.Module]:
        """The layers that the layout streams, or that lie on other cards."""
        layers = self._layers()
        streamed = {name for portion in portions_of(layers, self.how.layout) for name in portion}
        elsewhere = {name for own in self._elsewhere(layers).values() for name in own if can_stream(layers[name])}
        return [layers[name] for name in layers if name in streamed | elsewhere]

    def _elsewhere(self, layers: dict[str, nn.Module]) -> dict[torch.device, list[str]]:
        """The names of the Linears on each card but the first."""
        if self.how.cards is None:
            return {}
        cards, found = self.how.cards, {card: [] for card in self.how.cards.others}
        for name in layers:
            card = cards.of_layer(name, self.doubles)
            if card in found:
                found[card].append(name)
        return found

    def _layers(self) -> dict[str, nn.Module]:
        return {name: m for name, m in self.transformer.named_modules() if hasattr(m, "in_features")}

    def _stream(self) -> None:
        """Stream the layers that the layout names, and no others."""
        elsewhere = self._elsewhere(layers := self._layers())
        if self.how.streamed is None:
            self._open(list(elsewhere))
        portions = portions_of(layers, self.how.layout)
        away = {name for names in elsewhere.values() for name in names}
        self.how.streamed.stream(layers, only(portions, layers.keys() - away))
        for weights, names in zip(self.how.elsewhere, elsewhere.values(), strict=True):
            self.unmovable = next((name for name in names if not self._movable(name, layers)), self.unmovable)
            own = only(portions, set(names))
            in_ring = {name for portion in own for name in portion}
            weights.stream(layers, own, [name for name in names if name not in in_ring and can_stream(layers[name])])

    def _movable(self, name: str, layers: dict[str, nn.Module]) -> bool:
        return can_stream(layers[name]) and f"diffusion_model.{name}.weight" not in self.patched

    def _open(self, others: list[torch.device]) -> None:
        how, pinning = self.how, 1 / (1 + len(others))
        how.streamed = StreamedWeights(self.device, how, self.mapped, pinning=pinning)
        how.elsewhere = [StreamedWeights(card, how, self.mapped, self.device, pinning) for card in others]

    def place_anew(self, patcher: ModelPatcher) -> None:
        """Let the patcher load what the layout leaves on the device; that injects again, which streams the rest."""
        self.how.streamed.close()
        placing.replace(patcher)

    def end(self) -> None:
        """Remove our forwards and stop streaming, for good."""
        self.eject()
        if self.how.streamed is not None:
            for weights in (self.how.streamed, *self.how.elsewhere):
                weights.end()
                self.stranded = self.stranded or weights.stranded
            self.how.streamed, self.how.elsewhere = None, []

    def eject(self) -> None:
        """Remove our forwards while ComfyUI moves the model; ``inject`` continues with the same buffers and pins."""
        self.how.changed = lambda: None
        if self.passing:
            self.passing.clear()
        if self.how.streamed is not None:
            for weights in (self.how.streamed, *self.how.elsewhere):
                weights.pause()
        for own in filter(None, (self.how.eight_bit, self.compiled)):
            own.forget()
        for module in self.swapped:
            if isinstance(module.__dict__.get("forward"), _Forward):
                del module.forward
        self.swapped.clear()

    def _replacement(self, module: nn.Module, name: str) -> _Forward | None:
        original = type(module).forward.__get__(module)
        if hasattr(module, "in_features") and hasattr(module, "weight"):
            return _Forward(_linear, module, original, self.deltas.get(name))
        if isinstance(module, nn.LayerNorm):
            return _Forward(_layer_norm, _bare(module, original))
        if isinstance(module, nn.RMSNorm):
            return _Forward(_rms_norm, module, original, {}, self.device if self.passing else None)
        if isinstance(module, BLOCK_KINDS):
            number = block_number(name, self.doubles)
            self.recompute.unread[number] = unread_linears(module, name, self.deltas)
            run = _Forward(routed, self.recompute, self._block(module, number, name, original), number)
            return _Forward(self.passing.block, number, run) if self.passing else run
        if self.passing and module is self.transformer.final_layer:
            return _Forward(self.passing.last, original)
        if self.passing and module is self.transformer.double_stream_modulation_img:
            return _Forward(self.passing.begin, original)
        return None

    def _block(self, module: nn.Module, number: int, name: str, original: Callable) -> Callable:
        own = self.compiled and self.compiled.block(module, name, original)
        run = while_training(own, original) if own else original
        return LastBlock(module, number, run) if module in self.transformer.single_blocks[-1:] else run


def _is_taken(module: nn.Module) -> bool:
    """True if another pack has set ``forward`` on the instance, to something else than the class's own ``forward``."""
    forward = module.__dict__.get("forward")
    restored = getattr(forward, "__func__", None) is type(module).forward
    return forward is not None and not restored and not isinstance(forward, _Forward)


class _Forward(partial):
    """A replacement forward, of a class of its own so that ``eject`` recognises it."""


def _linear(module: nn.Module, original: Callable, delta: Delta | None, x: Tensor) -> Tensor:
    frozen = comfy.model_management.in_training or SOURCE in module.__dict__
    if frozen and isinstance(delta, PlainLora) and torch.is_grad_enabled():
        factors = delta.factors(x.dtype)
        if factors is not None:
            return lora_linear(module, x, *delta.parameters(), factors)
    y = frozen_linear(module, x) if frozen else original(x)
    extra = delta(x, y, partial(fetched, module)) if delta is not None else None
    return y if extra is None else y + extra


def _layer_norm(original: Callable, x: Tensor) -> Tensor:
    return original(x.clone() if torch.is_grad_enabled() else x)


def _bare(module: nn.LayerNorm, original: Callable) -> Callable:
    """torch's own LayerNorm where the module has neither scale nor shift, as FLUX.2's: ComfyUI's looks for both."""
    if module.elementwise_affine:
        return original
    return partial(F.layer_norm, normalized_shape=module.normalized_shape, eps=module.eps)


def _rms_norm(
    module: nn.Module, original: Callable, kept: dict[tuple, Tensor], home: torch.device | None, x: Tensor
) -> Tensor:
    elsewhere = home is not None and x.device != home  # on another card than the scale
    return frozen_rms_norm(module, x, kept) if comfy.model_management.in_training or elsewhere else original(x)
