"""Finds out from the headers of a FLUX.2's files whether it fits this machine, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters.targets import select
from ..errors import UserError
from ..flavours import FLAVOURS, Flavour, flavour
from ..formats import AS_IN_FILE, PLANNED, PRECISIONS, tiers
from ..host import sizes
from ..host.graph_types import CLIP, VAE, ModelPatcher
from ..host.loading import load, quantise, shards
from ..host.system import machine
from ..planning.layout import LEAF
from ..planning.planner import GB, Pins, Plan, choose, lora_sites, needed, smallest
from ..planning.weights import Weights, of_files, of_flavour
from ..planning.work import Machine, Work
from ..settings.model import ModelSettings
from ..train.plans import available

RANK, RESOLUTIONS = 16, (512, 1024)  # the runs that the text lists
LEAST = 256, 1  # pixels and rank: if this run does not fit, no other does, and there is no room to sample either


@dataclass(frozen=True)
class Surroundings:
    """The machine that a model has to fit into.

    ``limited`` is false on a CPU alone, which borrows memory from the disk. ``rates`` says where the seconds come from.
    """

    machine: Machine
    limited: bool = True
    rates: str = ""

    @property
    def size(self) -> int:
        """Bytes of one number in the dtype that models compute in here."""
        return 2 if self.limited else 4


def here() -> Surroundings:
    """The device that ComfyUI uses, with the memory that is free on it."""
    device = machine.device()
    return Surroundings(available(device), device.type != "cpu", machine.rates_in_words(device))


Chosen = tuple[ModelSettings, str]  # see ``chosen_precision``


@dataclass(frozen=True)
class Parts:
    """The files of a FLUX.2 and how its transformer will be stored. Each file is loaded when its method is called.

    ``text_encoder`` or ``vae`` is ``None`` where it is not needed. ``text`` says what will be loaded, how much memory
    it takes and why it was chosen.
    """

    chosen: ModelSettings
    transformer: Path
    text_encoder: Path | None
    vae: Path | None
    text: str

    def load_model(self) -> ModelPatcher:
        """ComfyUI's MODEL."""
        return load.load_model(self.transformer, self.chosen)

    def load_clip(self) -> CLIP:
        """ComfyUI's CLIP."""
        return load.load_clip(self.text_encoder, self.chosen)

    def load_vae(self) -> VAE:
        """ComfyUI's VAE."""
        return load.load_vae(self.vae, flavour(self.chosen.flavour))


def parts_of(
    settings: ModelSettings, decide: Callable[[Callable[[], Chosen]], Chosen] = lambda choose: choose(),
    needed: Container[str] = load.PARTS,
) -> Parts:  # fmt: skip
    """The files that ``settings`` names, with a precision in place of ``auto``; only those that are ``needed``.

    ``decide`` calls its argument and returns the result; of several processes one calls it for all of them. Raises
    UserError for a missing file, and if no training fits.
    """
    paths = load.locate_parts(settings, needed)
    chosen, text = decide(lambda: chosen_precision(settings, paths))
    return Parts(chosen, *paths, text)


def chosen_precision(settings: ModelSettings, paths: load.Located, surroundings: Surroundings | None = None) -> Chosen:
    """The settings with a precision in place of ``auto``, and a text that says what that takes and why it was chosen.

    ``paths`` are transformer, text encoder and VAE. Raises UserError if no training fits, and names what would fit. A
    file that the planner cannot read, or of another flavour, keeps the precision of its file; the loader judges it.
    """
    row, surroundings = flavour(settings.flavour), surroundings or here()
    weights = _weights(row, paths[0])
    if weights is None:
        return _as(settings, AS_IN_FILE) if settings.precision == PLANNED else settings, _names(paths)
    model, why = _Model(row, weights, settings.precision, surroundings), ""
    if settings.precision == PLANNED:
        model, why = _fastest(model, paths[0].name)
    _require_room(model)
    source = [f"seconds: {surroundings.rates}"] if surroundings.rates else []
    return _as(settings, model.precision), "\n".join([*_head(model, why, paths), *_rows(model), *source])


def _as(settings: ModelSettings, precision: str) -> ModelSettings:
    return replace(settings, precision=precision)


def _weights(row: Flavour, path: Path) -> Weights | None:
    try:
        weights = of_files(shards.parts_of(path))
    except UserError:
        return None
    return weights if (weights.hidden, weights.double, weights.single) == row.sizes[:3] else None


@dataclass(frozen=True)
class _Model:
    """A transformer's file, the precision to store it in, and the machine to load it on."""

    row: Flavour
    file: Weights
    precision: str
    surroundings: Surroundings

    @property
    def quantised(self) -> bool:
        return self.file.quantised

    @property
    def weights(self) -> Weights:
        return self.file if self.precision == AS_IN_FILE else of_flavour(self.row, self.precision)

    def work(self, pixels: int, rank: int = RANK) -> Work:
        """A run on square images with plain LoRAs on all layers."""
        weights = self.weights
        sites = lora_sites(weights, select(weights.linears, "all"), rank)
        stored = self._format()
        return Work(weights, sites, (pixels // 16) ** 2, self.row.text_length, precision=stored,
                    size=self.surroundings.size, in_one_step=sizes.dequantises_in_one_step(stored))  # fmt: skip

    def _format(self) -> str:
        """The name of the precision that the weights have in memory."""
        return self.precision if self.precision != AS_IN_FILE or not self.quantised else self.file.format

    def plan(self, pixels: int, rank: int = RANK) -> Plan | None:
        """The fastest plan that fits, ``None`` if none does."""
        for pins in (
            Pins(streaming=self.surroundings.limited),
            Pins(streaming=self.surroundings.limited, grouped=LEAF),
        ):
            try:
                return choose(self.work(pixels, rank), self.surroundings.machine, pins)
            except UserError:
                continue
        return None

    def least(self, pixels: int, rank: int = RANK) -> float:
        """The least bytes of device memory that should be free."""
        pins = Pins(streaming=self.surroundings.limited, grouped=LEAF)
        return needed(smallest(self.work(pixels, rank), self.surroundings.machine, pins).estimate)


def _fastest(model: _Model, file: str) -> tuple[_Model, str]:
    """The model in the precision that ``auto`` chooses, and why."""
    if model.quantised:
        return replace(model, precision=AS_IN_FILE), f"auto: {file} is quantised already and is never quantised twice"
    known, (first, *others) = (AS_IN_FILE, "bf16", *quantise.available()), tiers()
    held = replace(model, file=replace(model.file, mapped=False))  # nothing is chosen that reads the disk in each step
    models = [[replace(held, precision=name) for name in tier if name in known]
              for tier in ((AS_IN_FILE, *first), *others)]  # fmt: skip
    for pixels in sorted(RESOLUTIONS, reverse=True):
        for tier in models:
            plans = [(plan.estimate.seconds, each) for each in tier if (plan := each.plan(pixels))]
            if plans:
                best = min(plans, key=lambda pair: pair[0])[1].precision
                return replace(model, precision=best), f"auto: the fastest that fits {pixels} px at rank {RANK}"
    least = [each.precision for tier in models for each in tier][-1]
    return replace(model, precision=least), "auto: the smallest there is"


def _require_room(model: _Model) -> None:
    if not model.surroundings.limited or model.plan(*LEAST):
        return
    machine = model.surroundings.machine
    near = [*_other_precisions(model), *_other_flavours(model)]
    would = f"What would fit: {', '.join(near)}." if near else "No flavour fits."
    size, free = model.weights.total / GB, machine.ram / GB
    host = f", and its {size:.1f} GB of weights in host memory, where {free:.1f} GB are free"
    raise UserError(
        f"{model.row.name} with precision '{model.precision}' cannot be trained here by any setting: it needs "
        f"{model.least(*LEAST) / GB:.1f} GB of device memory, {machine.vram / GB:.1f} GB are free"
        f"{'' if model.weights.mapped else host}. {would}"
    )


def _other_precisions(model: _Model) -> Iterator[str]:
    if not model.quantised:
        for name in (name for name, row in PRECISIONS.items() if row.suggested):
            if name in quantise.available() and replace(model, precision=name).plan(*LEAST):
                yield f"precision '{name}'"
        plan = replace(model, precision=AS_IN_FILE).plan(*LEAST) if model.precision != AS_IN_FILE else None
        if plan:
            slow = f", at {plan.estimate.seconds:.0f} s per step from the disk" if plan.estimate.disk else ""
            yield f"precision '{AS_IN_FILE}'{slow}"


def _other_flavours(model: _Model) -> Iterator[str]:
    for row in FLAVOURS.values():
        if row.name not in (model.row.name, "nano"):
            other = _Model(row, of_flavour(row, "bf16"), "fp8 (scaled)", model.surroundings)
            if other.plan(*LEAST):
                yield f"{row.name} with precision 'fp8 (scaled)'"


def _names(paths: load.Located) -> str:
    return "\n".join(path.name for path in paths if path)


def _head(model: _Model, why: str, paths: load.Located) -> Iterator[str]:
    yield f"{model.row.name}, {model.precision}" + (f" ({why})" if why else "")
    transformer, *others = paths
    sizes = {transformer: model.weights.total}
    sizes |= {path: sum(part.stat().st_size for part in shards.parts_of(path)) for path in others if path}
    for path, size in sizes.items():
        yield f"{size / GB:6.2f} GB  {path.name}"
    yield _free(model.surroundings)


def _free(surroundings: Surroundings) -> str:
    machine = surroundings.machine
    device = f"{machine.vram / GB:.1f} GB on the device, " if surroundings.limited else ""
    return f"free: {device}{machine.ram / GB:.1f} GB in host memory"


def _rows(model: _Model) -> Iterator[str]:
    for pixels in RESOLUTIONS:
        plan = model.plan(pixels)
        if plan is None:
            yield f"{pixels} px, rank {RANK}: does not fit, {model.least(pixels) / GB:.1f} GB are needed"
            continue
        layout = plan.layout.describe(model.row.double_blocks + model.row.single_blocks)
        peak, seconds = plan.estimate.peak / GB, plan.estimate.seconds
        disk = f", {plan.estimate.disk / GB:.1f} GB of weights read from disk" if plan.estimate.disk else ""
        yield f"{pixels} px, rank {RANK}: {peak:.1f} GB, {seconds:.1f} s per step; {layout}{disk}"


def outlook(settings: ModelSettings, transformer: Path | None, surroundings: Surroundings | None = None) -> list[str]:
    """What runs of RESOLUTIONS take on this machine, before anything is loaded.

    Without a file, the flavour's first official one is planned for.
    """
    row, surroundings = flavour(settings.flavour), surroundings or here()
    weights = _weights(row, transformer) if transformer else None
    stored = settings.precision
    if weights is None:
        official = row.transformer_files(settings.variant)[0].name
        in_file = "fp8 (scaled)" if "fp8" in official else "bf16"
        weights = of_flavour(row, in_file)
        stored = in_file if stored == AS_IN_FILE else stored
    model = _Model(row, weights, stored, surroundings)
    if stored == PLANNED:
        model, _ = _fastest(model, row.name)
    stored = AS_IN_FILE if model.precision == AS_IN_FILE else f"as {model.precision}"
    return [f"{stored}, {_free(surroundings)}", *_rows(model)]
