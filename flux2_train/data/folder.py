"""A folder of images and captions as a data set: found, checked and described before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import ImageColor

from ..canonical import canonical_hash
from ..errors import UserError
from . import captions as texts
from . import crops, faces
from .captions import FILE_NAME, JSONL, ONE_PROMPT, TEXT_FILE, CaptionOptions, Row
from .crops import ACCEPT, REFUSE, SKIP, Crop, CropOptions
from .dataset import Dataset, Item, Mask, Source, View
from .images import SUFFIXES, Facts, open_upright, read_bytes
from .index import Index
from .masks import MaskOptions
from .pairs import MOST_FOLDERS, STRICT, ReferenceOptions, by_name, listing, name_of, some

CAPTION_SOURCES = texts.SOURCES
SHAPE_TOLERANCE = 0.01  # by how much a partner's aspect ratio may differ before it cannot be the same picture

Report = Callable[[str, int, int], None]  # (what is being done, done, total)


@dataclass(frozen=True)
class Request:
    """Everything asked of one folder, as the node or the command line says it."""

    folder: Path
    resolution: int
    captions: str = TEXT_FILE
    prompt: str = ""
    trigger: str = ""
    class_word: str = ""
    references: tuple[Path, ...] = ()
    bad_files: str = SKIP
    subfolders: bool = True
    background: str = "white"
    max_samples: int = 0
    source: Source = field(default_factory=lambda: Source(Path()))
    caption: CaptionOptions = field(default_factory=CaptionOptions)
    crop: CropOptions = field(default_factory=CropOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)

    def __post_init__(self):
        if self.captions not in CAPTION_SOURCES or self.bad_files not in (SKIP, REFUSE):
            raise UserError(f"captions is {self.captions!r} and bad_files {self.bad_files!r}; choose from "
                            f"{', '.join(CAPTION_SOURCES)} and {SKIP}, {REFUSE}.")  # fmt: skip
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise UserError(
                f"background is {self.background!r}, which is no colour; write white or #ffffff."
            ) from error
        if len(self.references) > MOST_FOLDERS:
            raise UserError(f"{len(self.references)} reference folders are named; at most {MOST_FOLDERS} can be used.")
        if self.reference.kind == STRICT and self.reference.resolution:
            raise UserError("reference_resolution is set, but strict references have their image's size; set it to 0.")

    @property
    def identity(self) -> str:
        """The same for the same settings, whatever the files hold."""
        return canonical_hash(repr(self))


def read_folder(request: Request, index: Index | None = None, report: Report = lambda *_: None) -> Dataset:
    """Find and check what can be trained on.

    ``index`` remembers what was found out about files, so that unchanged ones are not read again. Raises UserError
    with names and reasons if nothing can be trained on, captions, references or masks are missing, or a file cannot
    be used and ``bad_files`` is ``refuse``.
    """
    return _Reader(request, index or Index(), report).read()


@dataclass(frozen=True)
class _Picture:
    """One usable image with what belongs to it."""

    path: Path
    digest: str
    facts: Facts
    captions: list[str] | None
    references: tuple[Path, ...] = ()
    mask: Path | None = None


class _Reader:
    """The stages of reading one folder, with what they find wrong."""

    def __init__(self, request: Request, index: Index, report: Report):
        self.request, self.index, self.report = request, index, report
        self.skipped: list[str] = []
        self.refused: list[str] = []
        self.warnings: list[str] = []
        self.partners: dict[Path, tuple[str, Facts]] = {}

    def read(self) -> Dataset:
        request = self.request
        if request.crop.crop and request.crop.style == crops.FACE:
            faces.require()
        pictures = self._limited(self._captioned(self._paired(self._sound(self._rows()))))
        items = tuple(item for picture in pictures for item in self._items(picture))
        self._refuse_bad()
        if not items:
            reasons = f" ({'; '.join(self.skipped[:3])})" if self.skipped else ""
            raise UserError(
                f"{request.folder} holds no usable image{reasons}; it needs {', '.join(SUFFIXES[:4])} files."
            )
        self._warn(pictures, items)
        source = self._source()
        told = tuple(self.skipped), tuple(self.warnings)
        return Dataset(items, (source,), request.resolution, *told, request.identity, (request,))

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
        apart = (*self.request.references, *filter(None, [self.request.mask.folder]))
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
        (self.refused if self.request.bad_files == REFUSE else self.skipped).append(f"{name} {reason}".strip())

    def _refuse_bad(self) -> None:
        if self.refused:
            raise UserError(f"{len(self.refused)} files cannot be used: {'; '.join(self.refused)}. Mend or "
                f"remove them, "
                            "or set bad_files or the size rule to 'skip'.")  # fmt: skip

    # what can be used

    def _sound(self, rows: list[Row]) -> list[_Picture]:
        known = self._facts([row.image for row in rows])
        sound = []
        for row in rows:
            digest, facts = known[row.image]
            if facts.problem:
                self._bad(row.image.name, facts.problem)
                continue
            action, reason = crops.problem(facts.width, facts.height, self.request.crop)
            if action == ACCEPT:
                sound.append(_Picture(row.image, digest, facts, row.captions, row.controls))
            else:
                (self.refused if action == REFUSE else self.skipped).append(f"{row.image.name}: {reason}")
        return sound

    def _facts(self, paths: list[Path]) -> dict[Path, tuple[str, Facts]]:
        """Content hash and facts of each file; a file that cannot be read has the reason as its problem."""
        digests = self.index.digests(paths, lambda done, total: self.report("reading files", done, total))
        readable = {path: digest for path, digest in digests.items() if isinstance(digest, str)}
        facts = self.index.facts(readable, lambda done, total: self.report("checking images", done, total))
        unreadable = {
            path: ("", Facts(problem=str(error).removeprefix(f"{path.name} ")))
            for path, error in digests.items()
            if not isinstance(error, str)
        }
        return unreadable | {path: (digest, facts[digest]) for path, digest in readable.items()}

    def _paired(self, pictures: list[_Picture]) -> list[_Picture]:
        """Pictures with their references and masks. Raises UserError naming those without, warns of surplus ones."""
        root = self.request.folder if self.request.folder.is_dir() else self.request.folder.parent
        names = [name_of(p.path, root) for p in pictures]
        for folder in self.request.references:
            partners = self._partners(folder, names, "reference")
            pictures = [
                replace(p, references=(*p.references, partners[n])) for p, n in zip(pictures, names, strict=True)
            ]
        if self.request.mask.folder:
            partners = self._partners(self.request.mask.folder, names, "mask")
            pictures = [replace(p, mask=partners.get(n)) for p, n in zip(pictures, names, strict=True)]
        elif self.request.mask.alpha:
            pictures = [replace(p, mask=p.path if p.facts.alpha else None) for p in pictures]
        self.partners = self._facts([path for p in pictures for path in _partners_of(p)])
        return [p for p in pictures if self._fitting(p)]

    def _fitting(self, picture: _Picture) -> bool:
        """Whether all references and the mask of a picture can be used; what cannot is reported."""
        for path in _partners_of(picture):
            facts = self.partners[path][1]
            if facts.problem:
                self._bad(path.name, f"(partner of {picture.path.name}) {facts.problem}")
                return False
            aligned = path == picture.mask or self.request.reference.kind == STRICT
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

    def _limited(self, pictures: list[_Picture]) -> list[_Picture]:
        """At most ``max_samples`` pictures: a fixed choice by content, which added files change little."""
        most = self.request.max_samples
        if not most or len(pictures) <= most:
            return pictures
        ranks = [canonical_hash([self.request.crop.seed, p.digest, p.path.name]) for p in pictures]
        limit = sorted(ranks)[most - 1]
        return [p for p, rank in zip(pictures, ranks, strict=True) if rank <= limit]

    # captions

    def _captioned(self, pictures: list[_Picture]) -> list[_Picture]:
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

    def _captions(self, picture: _Picture) -> list[str] | None:
        if picture.captions is not None or self.request.captions == ONE_PROMPT:
            return picture.captions or None
        if self.request.captions == FILE_NAME:
            return [texts.from_file_name(picture.path)]
        file = next((path for path in texts.beside(picture.path) if path.is_file()), None)
        if file is None:
            return None
        return texts.read_file(file) or (None if self.request.prompt.strip() else [""])

    def _say(self, caption: str) -> tuple[str, str]:
        """(caption, class caption) with trigger and class word in their places."""
        trigger, word, prepend = self.request.trigger, self.request.class_word, self.request.caption.prepend_trigger
        if self.request.source.is_reg:
            text = texts.with_trigger(caption, word, prepend=False)
            return text, text
        text = texts.with_trigger(caption, trigger, prepend=prepend)
        return text, texts.with_trigger(caption, trigger, word, prepend) if word else text

    def _source(self) -> Source:
        text, class_text = (
            self._say(self.request.caption.dropout_caption) if self.request.caption.dropout_caption else ("", "")
        )
        return replace(
            self.request.source,
            folder=self.request.folder,
            trigger=self.request.trigger,
            class_word=self.request.class_word,
            caption_dropout=self.request.caption.dropout,
            dropout_caption=text,
            dropout_class_caption=class_text,
            reference_dropout=self.request.reference.dropout,
            reference_sampling=self.request.reference.sampling,
        )

    # items

    def _items(self, picture: _Picture) -> list[Item]:
        request, facts = self.request, picture.facts
        said = [self._say(c) for c in texts.variants(picture.captions, request.caption, picture.digest)]
        said = list(dict.fromkeys(said))
        found = crops.crops(*facts.size, picture.digest, request.resolution, request.crop, lambda: self._face(picture))
        return [
            Item(
                self._view(picture.path, picture.digest, facts, crop),
                tuple(text for text, _ in said),
                tuple(class_text for _, class_text in said),
                tuple(self._reference(path, crop, facts) for path in picture.references),
                self._mask(picture, crop),
            )
            for crop in found
        ]

    def _view(self, path: Path, digest: str, facts: Facts, crop: Crop) -> View:
        return View(path, digest, crop, self.request.background if facts.alpha else "")

    def _reference(self, path: Path, crop: Crop, image: Facts) -> View:
        digest, facts = self.partners[path]
        if self.request.reference.kind == STRICT:
            return self._view(path, digest, facts, crop.on(*image.size, facts.size))
        side = self.request.reference.resolution or (crop.size[0] * crop.size[1]) ** 0.5
        own = crops.crops(*facts.size, digest, side, CropOptions(aspect=crops.PRESERVE))[0]
        return self._view(path, digest, facts, replace(own, flip_x=crop.flip_x, flip_y=crop.flip_y))

    def _mask(self, picture: _Picture, crop: Crop) -> Mask | None:
        if picture.mask is None:
            return None
        digest, facts = self.partners[picture.mask]
        options = self.request.mask
        view = View(picture.mask, digest, crop.on(*picture.facts.size, facts.size))
        return Mask(view, options.alpha, options.invert, options.minimum)

    def _face(self, picture: _Picture) -> tuple[float, float] | None:
        known = self.index.remembered("face", [picture.digest])
        if picture.digest not in known:
            point = faces.largest_face(open_upright(read_bytes(picture.path), picture.path.name))
            self.index.remember("face", picture.digest, point)
            return point
        point = known[picture.digest]
        return tuple(point) if point else None

    # what the user should know

    def _warn(self, pictures: list[_Picture], items: tuple[Item, ...]) -> None:
        request = self.request
        small = [i.path.name for i in items if _scaled_up(i)]
        if small:
            self.warnings.append(
                f"{len(small)} images are smaller than they are trained at and scaled up: {some(small)}"
            )
        captions = {text for item in items for text in item.captions}
        if (
            request.trigger
            and not request.source.is_reg
            and not any(texts.has_word(c, request.trigger) for c in captions)
        ):
            self.warnings.append(f"the trigger {request.trigger!r} is in no caption")
        if not request.trigger and any(texts.PLACEHOLDER in c for p in pictures for c in p.captions):
            self.warnings.append("captions contain [trigger] but trigger is empty")
        if len(pictures) > 1 and len(captions) == 1 and request.captions != ONE_PROMPT:
            self.warnings.append("all captions are equal")
        blank = [p.path.name for p in pictures if not any(p.captions)]
        if blank:
            self.warnings.append(f"{len(blank)} captions are empty: {some(blank)}")
        self.warnings += _duplicates(pictures)


def _partners_of(picture: _Picture) -> list[Path]:
    return [*picture.references, *([picture.mask] if picture.mask else [])]


def _same_shape(one: Facts, other: Facts) -> bool:
    return abs(one.width * other.height / (one.height * other.width) - 1) <= SHAPE_TOLERANCE


def _scaled_up(item: Item) -> bool:
    left, top, right, bottom = item.view.crop.box
    return item.size[0] > (right - left) + 8 or item.size[1] > (bottom - top) + 8  # half a step of 16 is rounding


def _duplicates(pictures: list[_Picture]) -> list[str]:
    same: dict[str, list[str]] = {}
    for picture in pictures:
        same.setdefault(picture.digest, []).append(picture.path.name)
    return [f"the same image is there {len(names)} times: {some(names)}" for names in same.values() if len(names) > 1]
