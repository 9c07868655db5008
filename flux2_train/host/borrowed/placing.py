"""Where a borrowed model's weights lie on a device without dynamic VRAM: streamed ones off it, all others on it.

There ComfyUI's patcher loads the Linears that are dearest to offload first, for as long as its own estimate of the room
lasts, and the others stay in host memory and come one by one whenever they are used. It knows nothing of a plan, which
has counted the room and chosen what to stream. So the patcher of a borrowed model is a subclass that loads in two
parts, each by ComfyUI's own code: what stays on the device, with all the room there is, and what is streamed, with
none. Streamed layers are then in the state of ComfyUI's offloaded ones, and any other clone of the model can run them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import comfy.model_management
import torch
from torch import nn

from ..loading import deferred
from ..system.memory import is_out_of_memory

PLACEMENT, LISTED = "flux2_train_placement", "flux2_train_listed"  # attributes of a patcher
ALL = 1e32  # core's word for as much as there is
CPU = torch.device("cpu")


class Placement:
    """What a borrowed model streams, as ``streamed`` says at any time, and whether the rest may take all the room.

    ``room`` are the bytes that training needs beside the weights, 0 where nobody has counted them: then ComfyUI judges.
    ``fits``: it is known already that the weights leave so much room.
    """

    def __init__(self, streamed: Callable[[], list[nn.Module]], room: float, fits: bool):
        self.streamed, self.room, self.fits = streamed, room, fits

    def budget(self, patcher, device: torch.device, core: float) -> float:
        """Bytes of weights to load: all that there are if they fit, else as many as ``core`` says.

        Training's own room counts only until it is known to fit: later the device holds a part of it already.
        """
        if not self.room or comfy.model_management.vram_state == comfy.model_management.VRAMState.NO_VRAM:
            return core
        missing = sum(comfy.model_management.module_size(m) for m in self.resident(patcher) if not _is_loaded(m))
        free = comfy.model_management.get_free_memory(device)
        self.fits = self.fits or missing + self.room <= free
        return ALL if self.fits and missing <= free else core

    def resident(self, patcher) -> list[nn.Module]:
        """The modules that are to lie on the device."""
        away = set(self.streamed())
        return [module for module in map(_module_of, patcher._load_list()) if module not in away]


def place(patcher, streamed: Callable[[], list[nn.Module]], room: float) -> bool:
    """Have a clone's weights placed so; false where ComfyUI's own way is right: with dynamic VRAM and on a CPU.

    A mapped model that is loaded is unloaded first if it streams: its file has the weights that are to leave.
    """
    if patcher.is_dynamic() or comfy.model_management.is_device_cpu(patcher.load_device):
        return False
    if deferred.mapped(patcher) and any(map(_is_loaded, streamed())):
        loaded = comfy.model_management.current_loaded_models
        others = [entry for entry in loaded if entry.model is None or entry.model.model is not patcher.model]
        comfy.model_management.free_memory(ALL, patcher.load_device, others)
    patcher.__class__ = _placing(type(patcher))
    planned = patcher.load_device.type == "cuda"  # there no run begins whose plan does not fit
    setattr(patcher, PLACEMENT, Placement(streamed, room, planned))
    return True


def replace(patcher) -> None:
    """Have other layers streamed from here on. Raises the device's own error where memory ends."""
    device = patcher.load_device
    with torch.inference_mode(), patcher.use_ejected(skip_and_inject_on_exit_only=True):
        patcher.partially_load(device, comfy.model_management.get_free_memory(device))


def end(patcher, before: int) -> None:
    """Nothing is streamed any more; ``before`` bytes of the model lay on the device, and do again if there is room."""
    if not hasattr(patcher, PLACEMENT):
        return
    delattr(patcher, PLACEMENT)
    device, missing = patcher.load_device, before - patcher.loaded_size()
    if missing <= 0:
        return
    room = comfy.model_management.get_free_memory(device) - comfy.model_management.minimum_inference_memory()
    if missing <= room:
        try:
            patcher.partially_load(device, ALL)
        except Exception as error:
            if not is_out_of_memory(error):
                raise


def _is_loaded(module: nn.Module) -> bool:
    """Whether ComfyUI has put the module on the device."""
    return bool(getattr(module, "comfy_patched_weights", False))


def _module_of(entry: tuple) -> nn.Module:
    """The module of an entry in a patcher's list, where versions of ComfyUI have it in different places."""
    return next(part for part in entry if isinstance(part, nn.Module))


class _Placing:
    """What the patcher of a borrowed model does beside its own work. A clone of it does nothing else."""

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        placement: Placement | None = self.__dict__.get(PLACEMENT)
        if placement is None:
            return super().partially_load(device_to, extra_memory, force_patch_weights)
        with self.use_ejected(skip_and_inject_on_exit_only=True):
            self._take_away(placement.streamed())
            extra = placement.budget(self, device_to, extra_memory)
            return super().partially_load(device_to, extra, force_patch_weights)

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        placement: Placement | None = self.__dict__.get(PLACEMENT)
        away = set(placement.streamed()) if placement else set()
        if not away:
            return super().load(device_to, lowvram_model_memory, force_patch_weights, full_load)
        with self._listing(lambda module: module not in away):
            super().load(device_to, ALL if full_load else lowvram_model_memory, force_patch_weights, False)
        resident = self.model.model_loaded_weight_memory
        with self._listing(away.__contains__):
            super().load(device_to, 0, force_patch_weights, False)
        self.model.model_loaded_weight_memory += resident

    def pin_weight_to_device(self, key):
        placement: Placement | None = self.__dict__.get(PLACEMENT)
        own = {id(layer) for layer in placement.streamed()} if placement else set()
        if id(self.model.get_submodule(key.rpartition(".")[0])) not in own:  # whoever streams it pins it, or a copy
            super().pin_weight_to_device(key)

    def _take_away(self, away: list[nn.Module]) -> None:
        """To host memory with what is streamed and lies on the device, as ComfyUI does it."""
        names = {module: name for name, module in self.model.named_modules()}
        for key in [key for module in away for key in (f"{names[module]}.weight", f"{names[module]}.bias")]:
            self.unpin_weight(key)
        loaded = set(filter(_is_loaded, away))
        if loaded:
            with self._listing(loaded.__contains__):
                super().partially_unload(CPU, ALL)

    def _load_list(self, *args, **kwargs):
        listed = self.__dict__.get(LISTED)
        entries = super()._load_list(*args, **kwargs)
        return entries if listed is None else [entry for entry in entries if listed(_module_of(entry))]

    @contextmanager
    def _listing(self, wanted: Callable[[nn.Module], bool]) -> Iterator[None]:
        """A context in which the patcher knows of no other modules than these."""
        setattr(self, LISTED, wanted)
        try:
            yield
        finally:
            delattr(self, LISTED)


@cache
def _placing(kind: type) -> type:
    return type(f"Placing{kind.__name__}", (_Placing, kind), {})
