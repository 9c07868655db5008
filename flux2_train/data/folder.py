"""A folder of images and captions as a data set: found, checked and described before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..hashing import canonical_hash
from ..settings.dataset import FILE_NAME, JSONL, ONE_PROMPT, REFUSE, STRICT, DatasetSettings
from . import captions as texts
from . import crops, faces
from .advice import advice
from .captions import Row
from .crops import ACCEPT
from .dataset import Dataset
from .images import SUFFIXES, Facts, open_upright, read_bytes
from .index import Index
from .items import Known, Picture, items_of, source_of
from .pairs import by_name, listing, name_of, shown, some

SHAPE_TOLERANCE = 0.01  # by how much a partner's aspect ratio may differ before it cannot be the same picture

Report = Callable[[str, int, int], None]  # (what is being done, done, total)


def read_folder(request: DatasetSettings, index: Index | None = None, report: Report = lambda *_: None) -> Dataset:
    """Find and check what can be trained on.

    ``index`` remembers what was found out about files, so that unchanged ones are not read again. Raises UserError
    with names and reasons if nothing can be trained on, captions, references or masks are missing, or a file cannot
    be used and ``bad_files`` is ``refuse``.
    """
    return _Reader(request, index or Index(), report).read()


class _Reader:
    """The stages of reading one folder, with what they find wrong."""

    def __init__(self, request: DatasetSettings, index: Index, report: Report):
        self.request, self.index, self.report = request, index, report
        self.skipped: list[str] = []
        self.refused: list[str] = []
        self.warnings: list[str] = []
        self.partners: dict[Path, Known] = {}

    def read(self) -> Dataset:
        request = self.request
        if request.crop_options.wants_faces:
            faces.require()
        pictures = self._limited(self._captioned(self._paired(self._sound(self._rows()))))
        self._refuse_bad()
        if not pictures:
            reasons = f" ({'; '.join(self.skipped[:3])})" if self.skipped else ""
            raise UserError(
                f"{request.folder} holds no usable image{reasons}; it needs {', '.join(SUFFIXES[:4])} files."
            )
        at = self._faces(pictures)
        items = tuple(item for p in pictures for item in items_of(p, request, self.partners, at.get(p.digest)))
        told = tuple(self.skipped), (*self.warnings, *advice(request, pictures, items))
        return Dataset(items, (source_of(request),), request.resolution, *told, request.identity, (request,))

    # what is there

    def _rows(self) -> list[Row]:
        folder = self.request.folder
        if folder.suffix.lower() == ".jsonl" and folder.is_file():
            return self._jsonl_rows(folder)
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}; name a folder of images.")
        if self.request.captions == JSONL:
            found = sorted(folder.glob("*.jsonl"))
            if len(found) != 1:
                raise UserError(f"{folder} holds {len(found)} .jsonl files, and captions 'jsonl' needs exactly one; "
                                "name the file itself in 'folder'.")  # fmt: skip
            return self._jsonl_rows(found[0])
        apart = (*self.request.references, *filter(None, [self.request.mask_options.folder]))
        images, others = listing(folder, self.request.subfolders, apart)
        self.skipped += [f"{p.name} is of a kind that is not read here; save it as PNG or JPEG" for p in others]
        return [Row(path, None, ()) for path in images]

    def _jsonl_rows(self, path: Path) -> list[Row]:
        rows = texts.read_jsonl(path)
        missing = [row.image.name for row in rows if not row.image.is_file()]
        if missing:
            self._bad("", f"{path.name} names {len(missing)} files that are not there: {some(missing)}")
        return [row for row in rows if row.image.is_file()]

    def _bad(self, name: str, reason: str) -> None:
        said = shown(f"{name} {reason}".strip())
        (self.refused if self.request.bad_files == REFUSE else self.skipped).append(said)

    def _refuse_bad(self) -> None:
        if self.refused:
            raise UserError(f"{len(self.refused)} files cannot be used: {'; '.join(self.refused)}. Mend or remove "
                            "them, or set bad_files or the size rule to 'skip'.")  # fmt: skip

    # what can be used

    def _sound(self, rows: list[Row]) -> list[Picture]:
        known = self._facts([row.image for row in rows])
        sound = []
        for row in rows:
            digest, facts = known[row.image]
            if facts.problem:
                self._bad(row.image.name, facts.problem)
                continue
            action, reason = crops.problem(facts.width, facts.height, self.request.crop_options)
            if action == ACCEPT:
                sound.append(Picture(row.image, digest, facts, row.captions, row.controls))
            else:
                (self.refused if action == REFUSE else self.skipped).append(f"{row.image.name}: {reason}")
        return sound

    def _facts(self, paths: list[Path]) -> dict[Path, Known]:
        """Content hash and facts of each file; a file that cannot be read has the reason as its problem."""
        digests = self.index.digests(paths, lambda done, total: self.report("reading files", done, total))
        readable = {path: digest for path, digest in digests.items() if isinstance(digest, str)}
        facts = self.index.facts(readable, lambda done, total: self.report("checking images", done, total))
        unreadable = {
            path: ("", Facts(problem=str(error).removeprefix(f"{path.name} ").rstrip(".")))
            for path, error in digests.items()
            if not isinstance(error, str)
        }
        return unreadable | {path: (digest, facts[digest]) for path, digest in readable.items()}

    def _paired(self, pictures: list[Picture]) -> list[Picture]:
        """Pictures with their references and masks. Raises UserError naming those without, warns of surplus ones."""
        root = self.request.folder if self.request.folder.is_dir() else self.request.folder.parent
        names = [name_of(p.path, root) for p in pictures]
        for folder in self.request.references:
            partners = self._partners(folder, names, "reference")
            pictures = [
                replace(p, references=(*p.references, partners[n])) for p, n in zip(pictures, names, strict=True)
            ]
        if self.request.mask_options.folder:
            partners = self._partners(self.request.mask_options.folder, names, "mask")
            pictures = [replace(p, mask=partners.get(n)) for p, n in zip(pictures, names, strict=True)]
        elif self.request.mask_options.alpha:
            pictures = [replace(p, mask=p.path if p.facts.alpha else None) for p in pictures]
        self.partners = self._facts([path for p in pictures for path in p.partners])
        return [p for p in pictures if self._fitting(p)]

    def _fitting(self, picture: Picture) -> bool:
        """Whether all references and the mask of a picture can be used; what cannot is reported."""
        for path in picture.partners:
            facts = self.partners[path][1]
            if facts.problem:
                self._bad(path.name, f"(partner of {picture.path.name}) {facts.problem}")
                return False
            aligned = path == picture.mask or self.request.reference_options.kind == STRICT
            if aligned and not _same_shape(facts, picture.facts):
                self._bad(path.name, f"is {facts.width}x{facts.height} and {picture.path.name} "
                          f"{picture.facts.width}x{picture.facts.height}: they must have the same shape")  # fmt: skip
                return False
        return True

    def _partners(self, folder: Path, names: list[str], what: str) -> dict[str, Path]:
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}; name the folder of {what}s.")
        partners = by_name(folder, self.request.subfolders)
        missing, surplus = [n for n in names if n not in partners], sorted(set(partners) - set(names))
        if missing and what == "reference":
            raise UserError(f"{len(missing)} images have no reference: {folder} holds no image named {some(missing)}.")
        if missing:
            self.warnings.append(f"{len(missing)} images have no mask and count fully: {some(missing)}")
        if surplus:
            self.warnings.append(f"{folder.name} has {what}s that belong to no image: {some(surplus)}")
        return partners

    def _limited(self, pictures: list[Picture]) -> list[Picture]:
        """At most ``max_samples`` pictures: a fixed choice by content, which added files change little."""
        most = self.request.max_samples
        if not most or len(pictures) <= most:
            return pictures
        ranks = [canonical_hash([self.request.crop_options.seed, p.digest, p.path.name]) for p in pictures]
        limit = sorted(ranks)[most - 1]
        return [p for p, rank in zip(pictures, ranks, strict=True) if rank <= limit]

    # captions

    def _captioned(self, pictures: list[Picture]) -> list[Picture]:
        found = [replace(p, captions=self._captions(p)) for p in pictures]
        missing = [p.path.name for p in found if p.captions is None]
        prompt = self.request.prompt.strip()
        if missing and not prompt:
            raise UserError(
                f"{len(missing)} of {len(pictures)} images have no caption file ({some(missing)}): add a .txt of the "
                "same name, fill in 'prompt' for them, or take captions from the file name."
            )
        if missing and self.request.captions != ONE_PROMPT:
            self.warnings.append(
                f"{len(missing)} images have no caption of their own and get 'prompt': {some(missing)}"
            )
        return [replace(p, captions=[prompt]) if p.captions is None else p for p in found]

    def _captions(self, picture: Picture) -> list[str] | None:
        if picture.captions is not None or self.request.captions == ONE_PROMPT:
            return picture.captions or None
        if self.request.captions == FILE_NAME:
            return [texts.from_file_name(picture.path)]
        file = next((path for path in texts.beside(picture.path) if path.is_file()), None)
        if file is None:
            return None
        return texts.read_file(file) or (None if self.request.prompt.strip() else [""])

    # faces

    def _faces(self, pictures: list[Picture]) -> dict[str, crops.Point]:
        """Where the largest face is, by content; each content is looked at once."""
        if not self.request.crop_options.wants_faces:
            return {}
        known = self.index.remembered("face", [p.digest for p in pictures])
        for done, picture in enumerate(pictures, 1):
            if picture.digest not in known:
                found = faces.largest_face(open_upright(read_bytes(picture.path), picture.path.name))
                self.index.remember("face", picture.digest, found)
                known[picture.digest] = found
            self.report("finding faces", done, len(pictures))
        without = [p.path.name for p in pictures if not known[p.digest]]
        if without:
            self.warnings.append(
                f"no face was found in {len(without)} images, cut around their centre: {some(without)}"
            )
        return {digest: tuple(point) for digest, point in known.items() if point}


def _same_shape(one: Facts, other: Facts) -> bool:
    return abs(one.width * other.height / (one.height * other.width) - 1) <= SHAPE_TOLERANCE
