"""Whether a FLUX.2 fits this machine: answered from its files' headers, before anything of them is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters.targets import select
from ..errors import UserError
from ..flavours import FLAVOURS, Flavour, flavour
from ..formats import AS_IN_FILE, PLANNED, PRECISIONS, tiers
from ..host import sizes
from ..host.loading import load, quantise, shards
from ..host.system import machine
from ..planning.estimate import Machine, Work
from ..planning.layout import LEAF
from ..planning.planner import GB, Pins, Plan, choose, lora_sites, needed, smallest
from ..planning.weights import Weights, of_files, of_flavour
from ..settings.model import ModelSettings
from ..train.plans import available

RANK, RESOLUTIONS = 16, (512, 1024)  # what the table answers for
LEAST = 256, 1  # pixels and rank: where these do not fit, no setting of a run makes it fit, nor is there room to sample


@dataclass(frozen=True)
class Place:
    """What there is to fit into. ``limited`` where memory cannot be borrowed from the disk: everywhere but on a CPU.

    ``rates`` says where the seconds come from.
    """

    machine: Machine
    limited: bool = True
    rates: str = ""

    @property
    def size(self) -> int:
        """Bytes of a number as models compute here."""
        return 2 if self.limited else 4


def here() -> Place:
    """The device that ComfyUI uses, with what is free on it."""
    device = machine.device()
    return Place(available(device), device.type != "cpu", machine.rates_in_words(device))


Answer = tuple[ModelSettings, str]


@dataclass(frozen=True)
class Parts:
    """The files of a FLUX.2, and how its transformer will be stored; each is loaded when it is asked for.

    ``text`` says what will be loaded, what that takes and why.
    """

    chosen: ModelSettings
    transformer: Path
    text_encoder: Path
    vae: Path
    text: str

    def load_model(self):
        """ComfyUI's MODEL."""
        return load.load_model(self.transformer, self.chosen)

    def load_clip(self):
        """ComfyUI's CLIP."""
        return load.load_clip(self.text_encoder, self.chosen)

    def load_vae(self):
        """ComfyUI's VAE."""
        return load.load_vae(self.vae, flavour(self.chosen.flavour))


def parts_of(
    chosen: ModelSettings, decide: Callable[[Callable[[], Answer]], Answer] = lambda answer: answer()
) -> Parts:
    """The files that ``chosen`` names, with a precision in place of ``auto``.

    ``decide`` calls what it is given, where there are several processes in one of them for all. Raises UserError for a
    missing file, and where no training fits.
    """
    paths = load.locate_parts(chosen)
    answer, text = decide(lambda: answered(chosen, paths))
    return Parts(answer, *paths, text)


def answered(chosen: ModelSettings, paths: tuple[Path, Path, Path], place: Place | None = None) -> Answer:
    """What will be loaded, with a precision in place of ``auto``, and a text that says what it takes and why.

    ``paths`` are transformer, text encoder and VAE. Raises UserError where no training fits, with what would. A file
    that the planner cannot read, or of another flavour, is left to the loader to judge, as it is in the file.
    """
    row, place = flavour(chosen.flavour), place or here()
    own = _weights(row, paths[0])
    if own is None:
        return _as(chosen, AS_IN_FILE) if chosen.precision == PLANNED else chosen, _names(paths)
    model, why = _Model(row, own, chosen.precision, place), ""
    if chosen.precision == PLANNED:
        model, why = _chosen(model, paths[0].name)
    _require_room(model)
    source = [f"seconds: {place.rates}"] if place.rates else []
    return _as(chosen, model.precision), "\n".join([*_head(model, why, paths), *_rows(model), *source])


def _as(chosen: ModelSettings, precision: str) -> ModelSettings:
    return replace(chosen, precision=precision)


def _weights(row: Flavour, path: Path) -> Weights | None:
    try:
        found = of_files(shards.parts_of(path))
    except UserError:
        return None
    return found if (found.hidden, found.double, found.single) == row.sizes[:3] else None


@dataclass(frozen=True)
class _Model:
    """A transformer's file, how it is to be stored, and where."""

    row: Flavour
    file: Weights
    precision: str
    place: Place

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
        return Work(weights, sites, (pixels // 16) ** 2, precision=stored, size=self.place.size,
                    in_one_step=sizes.dequantises_in_one_step(stored))  # fmt: skip

    def _format(self) -> str:
        """The precision by a name that says what dequantising takes."""
        return self.precision if self.precision != AS_IN_FILE or not self.quantised else self.file.format

    def plan(self, pixels: int, rank: int = RANK) -> Plan | None:
        """The fastest plan that fits, ``None`` where none does."""
        for pins in (Pins(streaming=self.place.limited), Pins(streaming=self.place.limited, grouped=LEAF)):
            try:
                return choose(self.work(pixels, rank), self.place.machine, pins)
            except UserError:
                continue
        return None

    def least(self, pixels: int, rank: int = RANK) -> float:
        """Bytes of device memory that should be free at least."""
        pins = Pins(streaming=self.place.limited, grouped=LEAF)
        return needed(smallest(self.work(pixels, rank), self.place.machine, pins).estimate)


def _chosen(model: _Model, file: str) -> tuple[_Model, str]:
    """The model in the precision that ``auto`` takes, and why."""
    if model.quantised:
        return replace(model, precision=AS_IN_FILE), f"auto: {file} is quantised already and is never quantised twice"
    known, (first, *others) = (AS_IN_FILE, "bf16", *quantise.available()), tiers()
    models = [[replace(model, precision=name) for name in tier if name in known]
              for tier in ((AS_IN_FILE, *first), *others)]  # fmt: skip
    for pixels in sorted(RESOLUTIONS, reverse=True):
        for tier in models:
            plans = [(plan.estimate.seconds, each) for each in tier if (plan := each.plan(pixels))]
            if plans:
                best = min(plans, key=lambda pair: pair[0])[1]
                return best, f"auto: the fastest that fits {pixels} px at rank {RANK}"
    return models[-1][-1] if models[-1] else replace(model, precision=AS_IN_FILE), "auto: the smallest there is"


def _require_room(model: _Model) -> None:
    if not model.place.limited or model.plan(*LEAST):
        return
    there = model.place.machine
    near = [*_other_precisions(model), *_other_flavours(model)]
    would = f"What would fit: {', '.join(near)}." if near else "No flavour fits."
    raise UserError(
        f"{model.row.name} with precision '{model.precision}' cannot be trained here by any setting: it needs "
        f"{model.least(*LEAST) / GB:.1f} GB of device memory, {there.vram / GB:.1f} GB are free, and its "
        f"{model.weights.total / GB:.1f} GB of weights in host memory, where {there.ram / GB:.1f} GB are free. {would}"
    )


def _other_precisions(model: _Model) -> Iterator[str]:
    if not model.quantised:
        for name in (name for name, row in PRECISIONS.items() if row.suggested):
            if name in quantise.available() and replace(model, precision=name).plan(*LEAST):
                yield f"precision '{name}'"


def _other_flavours(model: _Model) -> Iterator[str]:
    for row in FLAVOURS.values():
        if row.name not in (model.row.name, "nano"):
            other = _Model(row, of_flavour(row, "bf16"), "fp8 (scaled)", model.place)
            if other.plan(*LEAST):
                yield f"{row.name} with precision 'fp8 (scaled)'"


def _names(paths: tuple[Path, Path, Path]) -> str:
    return "\n".join(path.name for path in paths)


def _head(model: _Model, why: str, paths: tuple[Path, Path, Path]) -> Iterator[str]:
    there = model.place.machine
    yield f"{model.row.name}, {model.precision}" + (f" ({why})" if why else "")
    encoder = sum(path.stat().st_size for path in shards.parts_of(paths[1]))
    sizes = (model.weights.total, encoder, paths[2].stat().st_size)
    for path, size in zip(paths, sizes, strict=True):
        yield f"{size / GB:6.2f} GB  {path.name}"
    device = f"{there.vram / GB:.1f} GB on the device, " if model.place.limited else ""
    yield f"free: {device}{there.ram / GB:.1f} GB in host memory"


def _rows(model: _Model) -> Iterator[str]:
    for pixels in RESOLUTIONS:
        plan = model.plan(pixels)
        if plan is None:
            yield f"{pixels} px, rank {RANK}: does not fit, {model.least(pixels) / GB:.1f} GB are needed"
            continue
        layout = plan.layout.describe(model.row.double_blocks + model.row.single_blocks)
        peak, seconds = plan.estimate.peak / GB, plan.estimate.seconds
        yield f"{pixels} px, rank {RANK}: {peak:.1f} GB, {seconds:.1f} s per step; {layout}"
