"""A folder of images and captions as a data set: found, checked and described before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..bounded import is_file
from ..errors import UserError
from ..hashing import canonical_hash
from ..names import counted, shown
from ..settings.crops import REFUSE
from ..settings.dataset_folder import FILE_NAME, JSONL, MOST_REFERENCES, ONE_PROMPT, STRICT, DatasetSettings
from . import captions as texts
from . import crops, faces, sidecar
from .advice import advice
from .captions import Row
from .crops import ACCEPT
from .dataset import Dataset
from .images import SUFFIXES, Facts, open_upright, read_bytes
from .index import Index
from .items import Known, UsableImage, items_of, source_of
from .numbered import numbered
from .pairs import MayRead, anywhere, by_name, is_jsonl, listing, name_of, some

SHAPE_TOLERANCE = 0.01  # relative difference of aspect ratios up to which an image and its partner have the same shape

LISTED = 20  # files that a message names with their reasons
FEW = 3
_NO_CAPTION = "images have no caption of their own and get"

Report = Callable[[str, int, int], None]  # (name of the task, files done, files in total)


def read_folder(
    settings: DatasetSettings,
    index: Index | None = None,
    report: Report = lambda *_: None,
    may_read: MayRead = anywhere,
) -> Dataset:
    """The data set of one folder: its usable images with captions, references and masks.

    ``index`` keeps hashes and facts of files, so that unchanged files are not read again. ``may_read`` says whether a
    link's target may be read; links to other places are skipped by name. Raises UserError with names
    and reasons if no image can be used, if captions, references or masks are missing, or if a file cannot be used and
    ``bad_files`` is ``refuse``.
    """
    return _Reader(settings, index or Index(), report, may_read).read()


class _Reader:
    """The stages of reading one folder. They collect the files that are skipped and refused, and the warnings."""

    def __init__(self, settings: DatasetSettings, index: Index, report: Report, may_read: MayRead):
        self.asked, self.index, self.report, self.may_read = settings, index, report, may_read
        self.root = sidecar.root_of(settings.folder)
        self.skipped: list[str] = []
        self.refused: list[str] = []
        self.warnings: list[str] = list(index.notes)
        self.partners: dict[Path, Known] = {}
        self.notes: tuple[str, ...] = ()
        self.excluded: list[Path] = []
        self.settings = self._with_marks(settings)

    def _with_marks(self, settings: DatasetSettings) -> DatasetSettings:
        """The settings with what flux2_dataset.json says, unless they record what it said in an earlier run."""
        path = self.root / sidecar.NAME
        if settings.pictures is not None or not self._is_readable(path):
            return replace(settings, pictures=settings.pictures or ())
        found, masks = sidecar.read(path), settings.mask_options
        painted = self.root / sidecar.MASKS
        if found.masks and not masks.alpha and not masks.folder and painted.is_dir():
            masks = replace(masks, folder=painted)
            self.notes += (f"{sidecar.NAME} takes the masks in {sidecar.MASKS}, because Mask Options names no folder",)
        return replace(settings, pictures=found.times, mask_options=masks)

    def read(self) -> Dataset:
        settings = self.settings
        if settings.crop_options.wants_faces:
            faces.require()
        images = self._limited(self._captioned(self._paired(self._usable(self._chosen(self._rows())))))
        self._refuse_bad()
        if not images:
            reasons = f" ({'; '.join(self.skipped[:FEW])})" if self.skipped else ""
            raise UserError(
                f"{settings.folder} holds no usable image{reasons}; it needs {', '.join(SUFFIXES[:4])} files."
            )
        at = self._faces(images)
        items = tuple(item for p in images for item in items_of(p, settings, self.partners, at.get(p.digest)))
        skipped, warnings = tuple(dict.fromkeys(self.skipped)), (*self.warnings, *advice(settings, images, items))
        sources = (source_of(settings),)
        return Dataset(
            items, sources, settings.resolution, skipped, warnings, self.asked.identity, (settings,), self.notes,
            tuple(self.excluded),
        )  # fmt: skip

    # which files the folder holds

    def _rows(self) -> list[Row]:
        folder = self.settings.folder
        if is_jsonl(folder):
            return self._jsonl_rows(folder)
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}; name a folder of images.")
        if self.settings.captions == JSONL:
            tables = sorted(path for path in folder.glob("*.jsonl") if self._is_readable(path))
            if len(tables) != 1:
                count = counted(len(tables), ".jsonl file")
                raise UserError(f"{folder} holds {count}, and captions 'jsonl' needs exactly one; "
                                "name the file itself in 'folder'.")  # fmt: skip
            return self._jsonl_rows(tables[0])
        excluded = (*self.settings.references, *filter(None, [self.settings.mask_options.folder]))
        paths, unread = listing(folder, self.settings.subfolders, excluded, self.may_read, self.skipped.append)
        self.skipped += [f"{shown(p.name)} is of a kind that is not read here; save it as PNG or JPEG" for p in unread]
        return [Row(path, None, ()) for path in paths]

    def _jsonl_rows(self, path: Path) -> list[Row]:
        rows = texts.read_jsonl(path)
        there = [row for row in rows if is_file(row.image)]
        if len(there) < len(rows):
            missing = [row.image.name for row in rows if not is_file(row.image)]
            count = counted(len(missing), "file that is", "files that are")
            self._bad("", f"{shown(path.name)} names {count} not there: {some(missing)}")
        foreign = [row.image.name for row in there if not all(map(self.may_read, (row.image, *row.controls)))]
        if foreign:
            count = counted(len(foreign), "link", "links")
            self._bad("", f"{shown(path.name)} names {count} to places that may not be read: {some(foreign)}")
        return [row for row in there if not foreign or all(map(self.may_read, (row.image, *row.controls)))]

    def _is_readable(self, path: Path) -> bool:
        """Whether a file beside an image can be read. A link out of the allowed places is left out and named."""
        if not is_file(path):
            return False
        if path.is_symlink() and not self.may_read(path):
            self.skipped.append(f"{shown(path.name)} is a link to a place that may not be read")
            return False
        return True

    def _bad(self, name: str, reason: str) -> None:
        """Note a file that cannot be used: refused or skipped, as ``bad_files`` says."""
        problem = f"{shown(name)} {reason}".strip()
        (self.refused if self.settings.bad_files == REFUSE else self.skipped).append(problem)

    def _refuse_bad(self) -> None:
        if self.refused:
            rest = len(self.refused) - LISTED
            more = f"; and {rest} more" if rest > 0 else ""
            raise UserError(
                f"{counted(len(self.refused), 'file')} cannot be used: {'; '.join(self.refused[:LISTED])}"
                f"{more}. Mend or remove them, or set bad_files or the size rule to 'skip'."
            )

    def _chosen(self, rows: list[Row]) -> list[Row]:
        """The rows that are not left out. Raises UserError if all are."""
        self.times = dict(self.settings.pictures)
        names = [self._name(row.image) for row in rows]
        said, odd = sidecar.sentences(self.settings.pictures, set(names))
        self.notes += said
        self.warnings += odd
        chosen = [row for row, name in zip(rows, names, strict=True) if self.times.get(name, 1)]
        self.excluded = [row.image for row, name in zip(rows, names, strict=True) if not self.times.get(name, 1)]
        if rows and not chosen:
            raise UserError(f"{sidecar.NAME} in {self.root} leaves out every image; put some of them back.")
        return chosen

    def _name(self, image: Path) -> str:
        """An image's name relative to the folder, with its ending."""
        return image.relative_to(self.root).as_posix()

    # which of them can be used

    def _usable(self, rows: list[Row]) -> list[UsableImage]:
        known = self._facts([row.image for row in rows])
        usable = []
        for row in rows:
            digest, facts = known[row.image]
            if facts.problem:
                self._bad(row.image.name, facts.problem)
                continue
            action, reason = crops.problem(facts.width, facts.height, self.settings.crop_options)
            if action == ACCEPT:
                often = self.times.get(self._name(row.image), 1)
                usable.append(UsableImage(row.image, digest, facts, row.captions, row.controls, repeats=often))
            else:
                (self.refused if action == REFUSE else self.skipped).append(f"{shown(row.image.name)}: {reason}")
        return usable

    def _facts(self, paths: list[Path]) -> dict[Path, Known]:
        """Content hash and facts of each file; a file that cannot be read has the reason as its problem."""
        digests = self.index.digests(paths, lambda done, total: self.report("reading files", done, total))
        readable = {path: digest for path, digest in digests.items() if isinstance(digest, str)}
        facts = self.index.facts(readable, lambda done, total: self.report("checking images", done, total))
        unreadable = {
            path: ("", Facts(problem=str(error).removeprefix(f"{shown(path.name)} ").rstrip(".")))
            for path, error in digests.items()
            if not isinstance(error, str)
        }
        return unreadable | {path: (digest, facts[digest]) for path, digest in readable.items()}

    def _paired(self, images: list[UsableImage]) -> list[UsableImage]:
        """The images with their references and masks.

        Raises UserError naming images without a reference; warns of images without a mask, and of references and masks
        that belong to no image.
        """
        names = [name_of(p.path, self.root) for p in images]
        for folder in self.settings.references:
            partners = self._partners(folder, names, "reference")
            images = [replace(p, references=(*p.references, *partners[n])) for p, n in zip(images, names, strict=True)]
        self._refuse_many(images)
        if self.settings.mask_options.folder:
            partners = self._partners(self.settings.mask_options.folder, names, "mask")
            images = [
                replace(p, mask=next(iter(partners.get(n, ())), None)) for p, n in zip(images, names, strict=True)
            ]
        elif self.settings.mask_options.alpha:
            images = [replace(p, mask=p.path if p.facts.alpha else None) for p in images]
        self.partners = self._facts([path for p in images for path in p.partners])
        return [p for p in images if self._partners_fit(p)]

    def _partners_fit(self, image: UsableImage) -> bool:
        """Whether all references and the mask of an image can be used; the first that cannot is reported."""
        for path in image.partners:
            facts = self.partners[path][1]
            if facts.problem:
                self._bad(path.name, f"(partner of {shown(image.path.name)}) {facts.problem}")
                return False
            aligned = path == image.mask or self.settings.reference_options.kind == STRICT
            if aligned and not same_shape(facts, image.facts):
                self._bad(path.name, f"is {facts.width}x{facts.height} and {shown(image.path.name)} "
                          f"{image.facts.width}x{image.facts.height}: they must have the same shape")  # fmt: skip
                return False
        return True

    def _refuse_many(self, images: list[UsableImage]) -> None:
        many = [p.path.name for p in images if len(p.references) > MOST_REFERENCES]
        if many:
            raise UserError(f"At most {MOST_REFERENCES} references of an image can be used; more have {some(many)}.")

    def _partners(self, folder: Path, names: list[str], what: str) -> dict[str, tuple[Path, ...]]:
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}; name the folder of {what}s.")
        partners = by_name(folder, self.settings.subfolders, self.may_read, self.skipped.append)
        known = [*names, *(name_of(path, self.root) for path in self.excluded)]
        theirs = numbered(partners, known) if what == "reference" else {n: (n,) for n in known if n in partners}
        found = {n: theirs[n] for n in names if n in theirs}
        missing = [n for n in names if n not in found]
        surplus = sorted(set(partners) - {partner for those in theirs.values() for partner in those})
        if missing and what == "reference":
            count = counted(len(missing), "image has", "images have")
            raise UserError(f"{count} no reference: {folder} holds no image named {some(missing)}.")
        if missing:
            self.warnings.append(
                f"{counted(len(missing), 'image has no mask and counts', 'images have no mask and count')} fully: "
                f"{some(missing)}"
            )
        if surplus:
            self.warnings.append(f"{folder.name} has {what}s that belong to no image: {some(surplus)}")
        return {name: tuple(partners[each] for each in those) for name, those in found.items()}

    def _limited(self, images: list[UsableImage]) -> list[UsableImage]:
        """At most ``max_samples`` images, chosen by hashes of their content: an added file changes little."""
        most = self.settings.max_samples
        if not most or len(images) <= most:
            return images
        ranks = [canonical_hash([self.settings.crop_options.seed, p.digest, p.path.name]) for p in images]
        limit = sorted(ranks)[most - 1]
        return [p for p, rank in zip(images, ranks, strict=True) if rank <= limit]

    # captions

    def _captioned(self, images: list[UsableImage]) -> list[UsableImage]:
        captioned = [replace(p, captions=self._captions(p)) for p in images]
        missing = [p.path.name for p in captioned if p.captions is None]
        prompt = self.settings.prompt.strip()
        if missing and not prompt:
            count = counted(len(images), "image has", "images have")
            raise UserError(
                f"{len(missing)} of {count} no caption file ({some(missing)}): add a .txt of the "
                "same name, fill in 'prompt' for them, or take captions from the file name."
            )
        if missing and self.settings.captions != ONE_PROMPT:
            self.warnings.append(
                f"{counted(len(missing), 'image has no caption of its own and gets', _NO_CAPTION)} 'prompt': "
                f"{some(missing)}"
            )
        return [replace(p, captions=[prompt]) if p.captions is None else p for p in captioned]

    def _captions(self, image: UsableImage) -> list[str] | None:
        if image.captions is not None or self.settings.captions == ONE_PROMPT:
            return image.captions or None
        if self.settings.captions == FILE_NAME:
            return [texts.from_file_name(image.path)]
        file = next((path for path in texts.beside(image.path) if self._is_readable(path)), None)
        if file is None:
            return None
        return texts.read_file(file) or (None if self.settings.prompt.strip() else [""])

    # faces

    def _faces(self, images: list[UsableImage]) -> dict[str, crops.Point]:
        """The centre of each image's largest face, by content hash; equal files are searched once."""
        if not self.settings.crop_options.wants_faces:
            return {}
        known = self.index.remembered("face", [p.digest for p in images])
        for done, image in enumerate(images, 1):
            if image.digest not in known:
                centre = faces.largest_face(open_upright(read_bytes(image.path), image.path.name))
                self.index.remember("face", image.digest, centre)
                known[image.digest] = centre
            self.report("finding faces", done, len(images))
        without = [p.path.name for p in images if not known[p.digest]]
        if without:
            self.warnings.append(
                f"no face was found in {counted(len(without), 'image, cut around its', 'images, cut around their')} "
                f"centre: {some(without)}"
            )
        return {digest: tuple(point) for digest, point in known.items() if point}


def same_shape(one: Facts, other: Facts) -> bool:
    """Whether an image and its partner have the same aspect ratio, up to SHAPE_TOLERANCE."""
    return abs(one.width * other.height / (one.height * other.width) - 1) <= SHAPE_TOLERANCE
