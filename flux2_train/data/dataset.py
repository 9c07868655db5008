"""What is trained on, as frozen values: a data set is found once, then only read, hashed and chained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ..hashing import canonical_hash
from ..settings.dataset_folder import COMBINED, DatasetSettings
from .crops import Crop, Size

FORMAT = 2  # version of the cached entries; raised when the same file and crop are to be encoded differently


@dataclass(frozen=True)
class View:
    """One image file as it is encoded. ``background`` is the colour behind transparency, empty for opaque images."""

    path: Path
    digest: str
    crop: Crop
    background: str = ""

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(1, 128, H/16, W/16)."""
        return 1, 128, self.crop.size[1] // 16, self.crop.size[0] // 16

    def canonical(self) -> dict:
        """Everything that its latents depend on; path and date are not part of it."""
        return {"format": FORMAT, "digest": self.digest, "background": self.background, **self.crop.canonical()}


@dataclass(frozen=True)
class Mask:
    """Where the loss counts: the grey of ``view``'s file, or its opacity where ``alpha`` is set."""

    view: View
    alpha: bool = False
    invert: bool = False
    minimum: float = 0.0

    def canonical(self) -> dict:
        """Everything that its values depend on."""
        return {**self.view.canonical(), "mask": [self.alpha, self.invert, self.minimum]}


@dataclass(frozen=True)
class Item:
    """One image at one size and crop. A step draws one of ``captions`` and the class caption at the same place.

    ``references`` are the images before the edit, one view per reference folder. ``source`` is the index of the
    item's folder in ``Dataset.sources``. An epoch sees the item ``repeats`` times as often as others of its folder.
    """

    view: View
    captions: tuple[str, ...]
    class_captions: tuple[str, ...]
    references: tuple[View, ...] = ()
    mask: Mask | None = None
    source: int = 0
    repeats: int = 1

    @property
    def path(self) -> Path:
        return self.view.path

    @property
    def size(self) -> Size:
        return self.view.crop.size

    @property
    def caption(self) -> str:
        return self.captions[0]

    @property
    def class_caption(self) -> str:
        return self.class_captions[0]

    def canonical(self) -> list:
        """All that matters for training, without paths."""
        references = [v.canonical() for v in self.references]
        mask = self.mask and self.mask.canonical()
        often = [self.repeats] if self.repeats != 1 else []  # so that hashes of earlier versions stay
        return [self.view.canonical(), self.captions, self.class_captions, references, mask, self.source, *often]


@dataclass(frozen=True)
class Source:
    """One folder's part in a data set: how often it is seen and how much it counts.

    An epoch sees ``repeats`` x ``probability`` of its items. ``is_reg`` marks regularisation images, which teach no
    trigger; with ``base_target`` they are trained towards the base model's prediction instead of the image.
    ``timestep_offset`` moves its times on the logit scale, above 0 towards noise. With ``balance`` above 0 an epoch
    sees as many images of it as its share of all folders' balance says. With ``batch`` above 0,
    so many of its images share a batch, whatever the run's own batch is.
    """

    folder: Path = Path()
    repeats: int = 1
    probability: float = 1.0
    weight: float = 1.0
    is_reg: bool = False
    base_target: bool = False
    trigger: str = ""
    class_word: str = ""
    caption_dropout: float = 0.0
    dropout_caption: str = ""
    dropout_class_caption: str = ""
    reference_dropout: float = 0.0
    reference_sampling: str = COMBINED
    timestep_offset: float = 0.0
    balance: float = 0.0
    batch: int = 0

    def canonical(self) -> dict:
        """All that matters for training. What earlier versions had not is left out where it does nothing."""
        left_out = {"folder"} | {name for name in ("balance", "batch") if not getattr(self, name)}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass(frozen=True)
class Dataset:
    """Items of one or several folders.

    ``skipped`` names files that cannot be used, with the reason; ``warnings`` are sentences for the user. ``requests``
    are the settings of every folder, and ``settings`` is their hash, which does not depend on the files. ``notes`` are
    sentences on what flux2_dataset.json changes, and ``excluded`` the images that it leaves out.
    """

    items: tuple[Item, ...]
    sources: tuple[Source, ...]
    resolution: int
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    settings: str = field(default="", compare=False)
    requests: tuple[DatasetSettings, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    excluded: tuple[Path, ...] = field(default=(), compare=False)

    @property
    def folder(self) -> Path:
        return self.sources[0].folder

    @property
    def trigger(self) -> str:
        """Every folder's trigger words."""
        return ", ".join(dict.fromkeys(s.trigger for s in self.sources if s.trigger))

    @property
    def class_word(self) -> str:
        """Every folder's class words."""
        return ", ".join(dict.fromkeys(s.class_word for s in self.sources if s.class_word))

    def without(self, word: str) -> list[str]:
        """Names of the folders, regularisation apart, that lack ``word``: their ``trigger`` or their ``class_word``."""
        return [s.folder.name for s in self.sources if not s.is_reg and not getattr(s, word)]

    @cached_property
    def fingerprint(self) -> str:
        """Changes when anything that matters for training does; both caches carry it, so they cannot be mixed up."""
        return canonical_hash([[i.canonical() for i in self.items], [s.canonical() for s in self.sources]])

    def texts(self) -> list[str]:
        """Every distinct text to encode, in a fixed order; the empty text is always one of them."""
        texts = [t for item in self.items for t in (*item.captions, *item.class_captions)]
        for source in self.sources:
            if source.caption_dropout:
                texts += [source.dropout_caption, source.dropout_class_caption]
        return list(dict.fromkeys([*texts, ""]))

    def views(self) -> Iterator[View]:
        """Every image to encode once, references included."""
        return iter(dict.fromkeys(v for item in self.items for v in (item.view, *item.references)))

    def masks(self) -> Iterator[Mask]:
        """Every mask to read once."""
        return iter(dict.fromkeys(item.mask for item in self.items if item.mask))

    def chained(self, other: Dataset) -> Dataset:
        """This data set followed by another one."""
        renumbered = tuple(replace(item, source=item.source + len(self.sources)) for item in other.items)
        return Dataset(
            self.items + renumbered,
            self.sources + other.sources,
            max(self.resolution, other.resolution),
            self.skipped + other.skipped,
            self.warnings + other.warnings,
            canonical_hash([self.settings, other.settings]),
            self.requests + other.requests,
            self.notes + other.notes,
            self.excluded + other.excluded,
        )
