"""Packs a run: its job, its last checkpoint, its data set and the caches of both, so that it goes on anywhere.

Nothing in a pack says where it was made: places are relative, model files have their bare names, and of the run only
those files come along that are written here anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PureWindowsPath

from ...atomic import apart, move, write_text
from ...bounded import reason
from ...data.cache import EmbedCache, LatentCache, StoredTensors
from ...data.dataset import Dataset
from ...errors import UserError
from ...hashing import canonical_hash
from ...host.loading import shards
from ...host.loading.files import resolve_file
from ...names import shown
from ...settings.base import plain
from ...settings.job import Job
from ...settings.model import ModelSettings
from .. import resume
from ..checkpoints import Snapshot
from ..dataset_record import difference
from ..folder import STOPPED, RunFolder
from ..graph_job import read_dataset
from ..precision import parts_of
from ..queue.run_job import Report, encode_all
from . import reading
from .contents import CACHE, LORAS, Contents, Pack, Place
from .copying import copy_file, copy_folder, require_outside

FILES = ("transformer", "text_encoder", "vae")


def pack(run: RunFolder, job: Job, to: Path, report: Report, packed: Pack | None = None) -> Pack:
    """Write ``run``, whose job is ``job``, into the new folder ``to``, which is there whole or not at all.

    What the caches lack is encoded first; a run that lies in the pack ``packed`` has all it needs there. Raises
    UserError for a run that is being trained, for a job that a file cannot hold, for data that have changed since the
    last checkpoint, and if ``to`` exists or cannot be written.
    """
    job.require_known()
    to = Path(to).absolute()
    if run.is_held():
        raise UserError(f"The run {run.name} is being trained right now; pause or stop it first.")
    if to.exists():
        raise UserError(f"{shown(str(to), 300)} exists already; name a folder that does not.")
    last = resume.newest(run)
    if packed:
        caches, size = reading.caches(packed, job, report), packed.contents.transformer
    else:
        caches, size = _caches(job, report)
    _require_same(run, last, caches[0][0].dataset)
    for embeds, _ in caches:
        require_outside(to, embeds.dataset)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with apart(to) as root:
            written = _write(root, run, job, last, caches, size, report)
            move(root, to, new=True)
    except OSError as error:
        raise UserError(f"{shown(str(to), 300)} cannot be written ({reason(error)}); nothing is left of it.") from error
    return Pack(to, written)


def _caches(job: Job, report: Report) -> tuple[list[tuple[EmbedCache, LatentCache]], int]:
    """The caches of the data set and of the held-out one, and the bytes of the transformer's files."""
    more = [text for change in job.changes for text in change.prompts or ()]
    job = replace(job, embeds=replace(job.embeds, prompts="\n".join([job.embeds.prompts, *more])))
    parts = parts_of(job.model)
    caches = encode_all(job, report, parts.load_clip(), parts.load_vae())
    return caches, sum(path.stat().st_size for path in shards.parts_of(parts.transformer))


def _require_same(run: RunFolder, last: resume.Resumption | None, dataset: Dataset) -> None:
    if last and last.checkpoint.about.dataset != dataset.fingerprint:
        raise UserError(
            f"The run {run.name} cannot go on from step {last.checkpoint.about.step} elsewhere, because "
            f"{difference(run.dataset, dataset)}. Put that back."
        )


def _write(root: Path, run: RunFolder, job: Job, last, caches: list, size: int, report: Report) -> Contents:
    count = len(job.dataset)
    places, requests = [], []
    for part, (embeds, _) in zip(("data", "held_out"), caches, strict=False):
        for number in range(len(embeds.dataset.requests)):
            place, request = copy_folder(root, f"{part}/{number}", embeds.dataset, number)
            places.append(place)
            requests.append(request)
        report.say(f"{part}: {len(embeds.dataset.items)} pictures")
    prompts = tuple(_copy_references(root, number, p.references)
                    for number, p in enumerate(job.previews.prompts if job.previews else ()))  # fmt: skip
    texts, images = {}, {}
    for embeds, latents in caches:
        texts |= _copy_entries(root, embeds.embeds)
        keys = _copy_entries(root, latents.latents)
        images |= {canonical_hash(item.canonical()): key for item, key in keys.items()}
    start = _copy_start(root, job.training.adapter.start_from)
    packed = Contents(run.name, tuple(places), prompts, texts, images, size, start)
    placed = _relative(replace(job, dataset=tuple(requests[:count]), held_out=tuple(requests[count:])), packed)
    _write_run(Pack(root, packed).run, run, placed, last)
    (root / LORAS).mkdir()
    packed.write(root)
    _require_readable(Pack(root, packed), placed, caches, report)
    return packed


def _copy_references(root: Path, number: int, paths: Iterable[Path]) -> tuple[str, ...]:
    names = []
    for count, path in enumerate(paths):
        path = resolve_file(str(path))
        names.append(f"references/{number}_{count}{path.suffix.lower()}")
        copy_file(path, root / names[-1])
    return tuple(names)


def _copy_start(root: Path, start: str) -> str:
    """Copy the LoRA to start from; a run that goes on reads it once more."""
    if not start:
        return ""
    if not Path(start).is_file():
        raise UserError(f"The LoRA to start from, {shown(start, 300)}, is no file that is there; put it back.")
    name = f"start/{Path(start).name}"
    copy_file(Path(start), root / name)
    return name


def _copy_entries(root: Path, tensors: StoredTensors) -> Mapping:
    """Copy the entries of a cache. Returns their keys by item."""
    for key in dict.fromkeys(tensors.keys_of.values()):
        path = tensors.store.path(key)
        copy_file(path, root / CACHE / path.relative_to(tensors.store.folder))
    return tensors.keys_of


def _relative(job: Job, packed: Contents) -> Job:
    """The job with places inside the pack, and with bare names of the model files."""
    count = len(job.dataset)
    dataset = tuple(map(_at, job.dataset, packed.places))
    held_out = tuple(map(_at, job.held_out, packed.places[count:]))
    previews = job.previews
    if previews:
        pairs = zip(previews.prompts, packed.prompts, strict=True)
        prompts = tuple(replace(prompt, references=tuple(map(Path, names))) for prompt, names in pairs)
        previews = replace(previews, prompts=prompts, model=previews.model and _bare(previews.model))
    adapter = replace(job.training.adapter, start_from=packed.start and Path(packed.start).name)
    return replace(
        job, dataset=dataset, held_out=held_out, previews=previews, model=_bare(job.model), output=type(job.output)(),
        training=replace(job.training, adapter=adapter),
    )  # fmt: skip


def _at(request, place: Place):
    mask = replace(request.mask_options, folder=Path(place.masks) if place.masks else None)
    references = tuple(map(Path, place.references))
    return replace(request, folder=Path(place.folder), references=references, mask_options=mask)


def _bare(model: ModelSettings) -> ModelSettings:
    return replace(model, **{name: PureWindowsPath(getattr(model, name)).name for name in FILES})


def _write_run(to: RunFolder, run: RunFolder, job: Job, last: resume.Resumption | None) -> None:
    about = run.about()
    to.path.mkdir(parents=True)
    write_text(to.job, job.to_json())
    step = last.checkpoint.about.step if last else 0
    to.note(status=STOPPED, step=step, total=about.get("total", 0), began=about.get("began", ""),
            resumed=[], why="", name=job.training.name)  # fmt: skip
    if last:
        Snapshot.of(replace(last.checkpoint.about, job=plain(job)), last.state).write(to.checkpoints)


def _require_readable(made: Pack, job: Job, caches: list, report: Report) -> None:
    """Raise UserError unless the data set of the pack is the one that was packed."""
    placed = made.job(job)
    for requests, (embeds, _) in zip((placed.dataset, placed.held_out), caches, strict=False):
        if read_dataset(requests, report).fingerprint != embeds.dataset.fingerprint:
            raise UserError("The packed data set is not the one that was trained on: a file has changed meanwhile, or "
                            "two folders share one; pack again.")  # fmt: skip
