"""Which of a flavour's files are there, and what this machine's memory allows, before anything is loaded or queued."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..flavours import Flavour, ModelFile, flavour
from ..host.loading import files, kinds
from ..settings.model import AUTO, ModelSettings
from . import precision

GOOD, BAD = "good: ", "bad: "  # how a line begins that web/shown.js marks


@dataclass(frozen=True)
class Part:
    """One of the three files. ``path`` is empty if it is missing, ``wrong`` says why it cannot be used."""

    what: str
    widget: str
    known: tuple[ModelFile, ...]
    path: Path | None
    wrong: str = ""

    @property
    def line(self) -> str:
        """One line for people."""
        if self.wrong:
            return f"{BAD}{self.what}: {self.wrong}"
        if self.path is not None:
            size = self.path.stat().st_size
            shown = f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
            return f"{GOOD}{self.what}: {self.path.name}, {shown}"
        first = self.known[0]
        if first.generate is not None:
            return f"{GOOD}{self.what}: comes with the pack"
        gated = f" It is gated: accept the licence on its page first, {_page(first)}" if first.gated else ""
        into = f"models/{first.folder}"
        return f"{BAD}{self.what}: {first.name} is missing. Download {first.url} into {into}.{gated}"


def _page(file: ModelFile) -> str:
    return f"https://huggingface.co/{file.repository}"


def parts(settings: ModelSettings) -> tuple[Part, Part, Part]:
    """Transformer, text encoder and VAE of the settings. Raises UserError for a variant that the flavour lacks."""
    row = flavour(settings.flavour)
    return (
        _part("transformer", row, row.transformer_files(settings.variant), settings.transformer,
              kinds.wrong_transformer),
        _part("text encoder", row, row.text_encoders, settings.text_encoder, kinds.wrong_text_encoder),
        _part("VAE", row, row.vaes, settings.vae, kinds.wrong_vae),
    )  # fmt: skip


def _part(
    what: str, row: Flavour, known: tuple[ModelFile, ...], chosen: str, wrong: Callable[[Path, Flavour], str]
) -> Part:
    widget = what.lower().replace(" ", "_")
    listed = chosen == AUTO or chosen in files.choices(known[0].folder)
    official = tuple(file for file in known if file.name == chosen)  # as the templates name it: say where to get it
    if not listed and official:
        return Part(what, widget, official, None)
    if not listed and not Path(chosen).is_file():
        return Part(what, widget, known, None, f"{chosen} is not in models/{known[0].folder}; choose 'auto' or a file "
                                               "that is there.")  # fmt: skip
    try:
        path = next(filter(None, map(files.find, known)), None) if chosen == AUTO else files.locate(known, chosen)
    except UserError as error:
        return Part(what, widget, known, None, str(error))
    readable = path is not None and path.suffix == ".safetensors"
    return Part(what, widget, known, path, wrong(path, row) if readable else "")


def lines(settings: ModelSettings) -> Iterator[str]:
    """The state of the three files, a line each, then what this machine's memory allows."""
    found = parts(settings)
    yield from (part.line for part in found)
    yield from precision.outlook(settings, found[0].path if not found[0].wrong else None)
