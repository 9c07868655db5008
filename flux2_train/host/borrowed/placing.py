"""Where a borrowed model's weights are, on a device without dynamic VRAM: streamed ones off it, all others on it.

On such a device ComfyUI's patcher loads Linears in its own order until its estimate of the room is used up; the others
stay in host memory and are copied one by one whenever they are used. It does not know the plan, which has counted the
room and chosen what to stream. So the patcher of a borrowed model is a subclass that loads in two parts, each with
ComfyUI's own code: first what stays on the device, with all the room there is, then what is streamed, with none.
Streamed layers are then in the state of layers that ComfyUI itself offloads, so any clone of the model can run them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..loading import deferred
from ..system.memory import is_out_of_memory

PLACEMENT, LISTED = "flux2_train_placement", "flux2_train_listed"  # attributes of a patcher
ALL = 1e32  # core's number for "as much as there is"
CPU = torch.device("cpu")


class Placement:
    """Which layers a borrowed model streams, and whether all others may be loaded.

    ``streamed`` returns the layers at any time. ``room`` is the bytes that training needs beside the weights; 0 if
    nobody has counted them, and then ComfyUI decides. ``fits``: it is already known that the weights leave that room.
    """

    def __init__(self, streamed: Callable[[], list[nn.Module]], room: float, fits: bool):
        self.streamed, self.room, self.fits = streamed, room, fits

    def budget(self, patcher: ModelPatcher, device: torch.device, core: float) -> float:
        """Bytes of weights to load: all if they fit, else ``core``, which is ComfyUI's own number.

        ``room`` counts only until it is known to fit: later the device already holds a part of what training needs.
        """
        if not self.room or comfy.model_management.vram_state == comfy.model_management.VRAMState.NO_VRAM:
            return core
        missing = sum(comfy.model_management.module_size(m) for m in self.resident(patcher) if not _is_loaded(m))
        free = comfy.model_management.get_free_memory(device)
        self.fits = self.fits or missing + self.room <= free
        return ALL if self.fits and missing <= free else core

    def resident(self, patcher: ModelPatcher) -> list[nn.Module]:
        """The modules that belong on the device."""
        away = set(self.streamed())
        return [module for module in map(_module_of, patcher._load_list()) if module not in away]


def place(patcher: ModelPatcher, streamed: Callable[[], list[nn.Module]], room: float) -> bool:
    """Make a clone's patcher place its weights in this way. False where that is not needed: dynamic VRAM, or a CPU.

    A loaded model that is mapped from its file is unloaded first if it streams: its streamed weights are in the file.
    """
    if patcher.is_dynamic() or comfy.model_management.is_device_cpu(patcher.load_device):
        return False
    if deferred.mapped(patcher) and any(map(_is_loaded, streamed())):
        loaded = comfy.model_management.current_loaded_models
        others = [entry for entry in loaded if entry.model is None or entry.model.model is not patcher.model]
        comfy.model_management.free_memory(ALL, patcher.load_device, others)
    patcher.__class__ = _placing(type(patcher))
    planned = patcher.load_device.type == "cuda"  # on CUDA no run begins unless its plan fits
    setattr(patcher, PLACEMENT, Placement(streamed, room, planned))
    return True


def replace(patcher: ModelPatcher) -> None:
    """Place the weights again after the streamed layers have changed. Raises the device's error if memory runs out."""
    device = patcher.load_device
    with torch.inference_mode(), patcher.use_ejected(skip_and_inject_on_exit_only=True):
        patcher.partially_load(device, comfy.model_management.get_free_memory(device))


def end(patcher: ModelPatcher, before: int) -> None:
    """End placing: load the ``before`` bytes that were on the device before the run, if there is room."""
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
    """The module in an entry of a patcher's list; its position differs between versions of ComfyUI."""
    return next(part for part in entry if isinstance(part, nn.Module))


class _Placing:
    """What is added to the patcher of a borrowed model. A clone of that patcher behaves as ComfyUI's own."""

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
        streamed = set(placement.streamed()) if placement else set()
        if not streamed:
            return super().load(device_to, lowvram_model_memory, force_patch_weights, full_load)
        with self._listing(lambda module: module not in streamed):
            super().load(device_to, ALL if full_load else lowvram_model_memory, force_patch_weights, False)
        resident = self.model.model_loaded_weight_memory
        with self._listing(streamed.__contains__):
            super().load(device_to, 0, force_patch_weights, False)
        self.model.model_loaded_weight_memory += resident

    def pin_weight_to_device(self, key):
        placement: Placement | None = self.__dict__.get(PLACEMENT)
        own = {id(layer) for layer in placement.streamed()} if placement else set()
        if id(self.model.get_submodule(key.rpartition(".")[0])) not in own:  # streaming pins it itself, or a copy
            super().pin_weight_to_device(key)

    def _take_away(self, leaving: list[nn.Module]) -> None:
        """Move streamed layers that are on the device to host memory, with ComfyUI's own code."""
        names = {module: name for name, module in self.model.named_modules()}
        for key in [key for module in leaving for key in (f"{names[module]}.weight", f"{names[module]}.bias")]:
            self.unpin_weight(key)
        loaded = set(filter(_is_loaded, leaving))
        if loaded:
            with self._listing(loaded.__contains__):
                super().partially_unload(CPU, ALL)

    def _load_list(self, *args, **kwargs):
        listed = self.__dict__.get(LISTED)
        entries = super()._load_list(*args, **kwargs)
        return entries if listed is None else [entry for entry in entries if listed(_module_of(entry))]

    @contextmanager
    def _listing(self, wanted: Callable[[nn.Module], bool]) -> Iterator[None]:
        """A context in which the patcher lists only the ``wanted`` modules."""
        setattr(self, LISTED, wanted)
        try:
            yield
        finally:
            delattr(self, LISTED)


@cache
def _placing(kind: type) -> type:
    return type(f"Placing{kind.__name__}", (_Placing, kind), {})
