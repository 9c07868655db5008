"""What lies where in a pack, and pack.json, which says it. No path in a pack begins outside its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

from ...atomic import write_text
from ...bounded import from_json, read_text
from ...errors import UserError
from ...names import problem, shown
from ...settings.dataset_folder import DatasetSettings
from ...settings.job import Job, Output
from ..folder import RunFolder

NAME = "pack.json"
VERSION = 1
MOST_BYTES = 1 << 28  # of pack.json: a hundred bytes for each picture and caption
KEY = re.compile(r"[0-9a-f]{16,128}")  # a name of an entry of the cache
RUNS, LORAS, CACHE = "runs", "loras", "cache"


@dataclass(frozen=True)
class Place:
    """Where one folder of pictures lies in a pack. ``masks`` is empty where it has none."""

    folder: str
    masks: str = ""
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """What pack.json says.

    ``places`` are those of ``dataset`` and ``held_out``, one after the other. ``prompts`` are the reference images of
    each prompt of the previews, ``start`` is the LoRA to start from. ``texts`` has the entry of the cache for each
    text, ``images`` for each hash of a picture's ``canonical``. ``transformer`` is the size of its files in bytes.
    """

    name: str
    places: tuple[Place, ...]
    prompts: tuple[tuple[str, ...], ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    transformer: int = 0
    start: str = ""
    version: int = VERSION

    def write(self, root: Path) -> None:
        """Write pack.json into the folder of the pack."""
        write_text(root / NAME, json.dumps(asdict(self), ensure_ascii=False) + "\n")

    def names(self) -> list[str]:
        """Every path that is named."""
        places = [name for each in self.places for name in (each.folder, each.masks, *each.references) if name]
        start = [self.start] if self.start else []
        return [*places, *start, *(name for names in self.prompts for name in names)]


@dataclass(frozen=True)
class Pack:
    """A pack on this machine."""

    root: Path
    contents: Contents

    @property
    def run(self) -> RunFolder:
        """The folder of its run."""
        return RunFolder(self.root / RUNS / self.contents.name)

    @property
    def cache(self) -> Path:
        """The folder of its encoded captions and pictures."""
        return self.root / CACHE

    def job(self, job: Job) -> Job:
        """The job with the pack's places on this machine. Raises UserError if it has other folders than the pack."""
        count = len(job.dataset) + len(job.held_out)
        if count != len(self.contents.places):
            raise UserError(
                f"The job has {count} folders of pictures and its pack {len(self.contents.places)}: a pack's data set "
                "cannot be changed, pack the run again."
            )
        requests = zip((*job.dataset, *job.held_out), self.contents.places, strict=True)
        placed = tuple(self._placed(request, place) for request, place in requests)
        previews = job.previews
        if previews and len(previews.prompts) == len(self.contents.prompts):
            pairs = zip(previews.prompts, self.contents.prompts, strict=True)
            prompts = tuple(replace(p, references=tuple(map(self._path, names))) for p, names in pairs)
            previews = replace(previews, prompts=prompts)
        training = job.training
        if self.contents.start and training.adapter.start_from:
            start = str(self._path(self.contents.start))
            training = replace(training, adapter=replace(training.adapter, start_from=start))
        return replace(
            job, training=training, previews=previews,
            dataset=placed[: len(job.dataset)], held_out=placed[len(job.dataset) :],
            output=Output(str(self.root / LORAS), str(self.root / RUNS)),
        )  # fmt: skip

    def _placed(self, request: DatasetSettings, place: Place) -> DatasetSettings:
        mask = replace(request.mask_options, folder=self._path(place.masks) if place.masks else None)
        references = tuple(map(self._path, place.references))
        return replace(request, folder=self._path(place.folder), references=references, mask_options=mask)

    def _path(self, name: str) -> Path:
        return self.root / name


def around(path: Path) -> Pack | None:
    """The pack in which a run's folder or a file of it lies, ``None`` if it lies in none. Raises UserError."""
    path = Path(path).absolute()
    root = next((each for each in path.parents if (each / NAME).is_file() and (each / RUNS) in path.parents), None)
    return read(root) if root else None


def read(root: Path) -> Pack:
    """The pack in a folder. Raises UserError if it is none, or is damaged."""
    root = Path(root).absolute()
    if not (root / NAME).is_file():
        raise UserError(
            f"{root} is no pack: it holds no {NAME}. Make one with: python -m flux2_train pack RUN --to DIR"
        )
    try:
        contents = _contents(from_json(read_text(root / NAME, MOST_BYTES, " as a pack")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{root / NAME} is damaged ({error}); pack the run again.") from error
    return Pack(root, contents)


def _contents(values: dict) -> Contents:
    if values.get("version") != VERSION:
        raise UserError(f"This pack is of version {shown(str(values.get('version')))}; version {VERSION} can be read.")
    places = tuple(Place(p["folder"], p["masks"], tuple(p["references"])) for p in values["places"])
    prompts = tuple(tuple(names) for names in values["prompts"])
    contents = Contents(values["name"], places, prompts, values["texts"], values["images"], values["transformer"],
                        values["start"])  # fmt: skip
    _require_inside([*contents.names(), contents.name])
    if problem(contents.name) or type(contents.transformer) is not int:
        raise ValueError("its name or its sizes are not of the right kind")
    if not all(KEY.fullmatch(key) for keys in (contents.texts, contents.images) for key in keys.values()):
        raise ValueError("it names an entry of the cache that has no such name")
    return contents


def _require_inside(names: list[str]) -> None:
    """Raise ValueError for a name that leads out of the pack."""
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name or "\0" in name:
            raise ValueError(f"{shown(name)} leads out of it")
