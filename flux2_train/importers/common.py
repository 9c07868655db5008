"""Translations that several trainers need: flavours, sizes of previews, steps and epochs, prompts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..geometry import MULTIPLE
from ..settings import prompts as prompt_files
from . import reading
from .convert import flag, lines, number, whole
from .draft import NotHere, Section
from .report import NOT_APPLICABLE, UNKNOWN, Row
from .rules import Differs

COMPILED = "it changes speed alone; LoRA Trainer has 'compile' for that"
NO_UPLOAD = "a run uploads nothing; python -m flux2_train publish RUN --push does"
LARGEST = 100_000  # pixels of a side, above which a number is no size


def flavour_of(value: Any) -> str:
    """The flavour in a model's name, repository or path. Raises NotHere for other models."""
    name = str(value).lower().replace("_", "-")
    found = re.search(r"klein-(?:base-)?(4b|9b)", name)
    if found:
        return f"klein-{found[1]}"
    if re.search(r"flux\W?2", name) and "klein" not in name:
        return "dev"
    raise NotHere("it does not name a FLUX.2 that is known here")


def family(names: Iterable[str], what: str) -> Callable[[Any, Section], str | None]:
    """A model family: those named are FLUX.2; others are no job of ours unless a flavour was chosen."""

    def take(value: Any, section: Section) -> str | None:
        if str(value).lower() in names:
            return None
        if section.draft.flavour:
            return Differs(f"the file is for {value}; its settings are taken over for {section.draft.flavour}")
        section.block(
            f"{what} is {value}, and this pack trains FLUX.2. --flavour takes the settings over nevertheless."
        )
        raise NotHere("not a FLUX.2 model")

    return take


def model_place(place: str) -> Callable[[Any, Section], str]:
    """A model's file. A repository is not fetched: 'auto' finds the official files in ComfyUI's folders."""

    def take(value: Any, section: Section) -> str | None:
        name = str(value)
        if not name.endswith((".safetensors", ".gguf")):
            official = "black-forest-labs/" in name or not name.strip()
            words = "'auto' finds the official file of the flavour in ComfyUI's folders"
            return words if official else Differs(f"no single file, so {words}")
        if not Path(name).is_absolute() and ":" not in name:
            raise NotHere(f"the path is relative to that trainer's folder; set the full path of {name}")
        section.put(place, name)
        return None

    return take


def counted(step_key: str, epoch_key: str) -> tuple[Callable, Callable]:
    """(for steps, for epochs): steps count where they are above 0, as in the trainers that have both."""

    def steps(value: Any, section: Section) -> str | None:
        if whole(value) > 0:
            section.put("training.steps", whole(value))
            return None
        return f"{epoch_key} counts"

    def epochs(value: Any, section: Section) -> str | None:
        given = section.get(step_key)
        if given is not None and number(given) > 0:
            return f"{step_key} counts"
        if whole(value) < 1:
            return "0 counts nothing"
        section.put("training.steps", 0)
        section.put("training.epochs", whole(value))
        return "0 steps count epochs"

    return steps, epochs


def size(value: Any, section: Section) -> str | None:
    """The size of previews: ``1024``, ``1024x768``, or the first of several."""
    text = str(value)
    sides = [int(each) for each in re.findall(r"\d+", text.split(",")[0])]
    if not 1 <= len(sides) <= 2:
        raise NotHere("it is no size such as 1024x1024")
    width, height = sides[0], sides[-1]
    side("previews.width")(width, section)
    side("previews.height")(height, section)
    return Differs("only the first size is painted") if "," in text else None


def side(place: str) -> Callable[[Any, Section], str | None]:
    """A side of previews, as a multiple of 16 pixels."""

    def take(value: Any, section: Section) -> str | None:
        rounded = max(1, round(number(value) / MULTIPLE)) * MULTIPLE
        section.put(place, rounded)
        return None if rounded == number(value) else "a multiple of 16 here"

    return take


def area_side(width: Any, height: Any) -> int:
    """The side of a square of that area, as a multiple of 16."""
    if not all(0 < number(side) < LARGEST**2 for side in (width, height)):
        raise NotHere("no picture has such a size")
    return max(MULTIPLE, round(math.sqrt(number(width) * number(height)) / MULTIPLE) * MULTIPLE)


def add_prompts(section: Section, entries: Iterable[Mapping[str, Any] | str]) -> None:
    """Add prompts to paint to those that are there."""
    new = [{"text": each} if isinstance(each, str) else dict(each) for each in entries]
    section.put("previews.prompts", [*(section.ours("previews.prompts") or []), *new])


def prompts(value: Any, section: Section) -> None:
    """One prompt or several."""
    add_prompts(section, lines(value))


def prompt_file(value: Any, section: Section) -> str:
    """A file of prompts, if it lies beside the configuration."""
    path = reading.beside(section.draft.path, value)
    if path is None:
        raise NotHere("that file does not lie beside this one; name it in the node Validation")
    try:
        found = prompt_files.from_file(path)
    except UserError as error:
        raise NotHere(str(error)) from None
    add_prompts(section, [{"text": p.text, "name": p.name, "strength": p.strength} for p in found])
    return f"{len(found)} prompts of {path.name}"


def switched(place: str, on: Any, off: Any) -> Callable[[Any, Section], None]:
    """A switch that is one of two values here."""
    return lambda value, section: section.put(place, on if flag(value) else off)


def logs(value: Any, section: Section) -> str | None:
    """The names of programs that a run is logged to."""
    names = {name.lower() for name in re.split(r"[\s,]+", " ".join(lines(value))) if name}
    both = names & {"all", "tensorboard"}, names & {"all", "wandb"}
    chosen = {
        (True, True): "csv, TensorBoard and Weights & Biases", (True, False): "csv and TensorBoard",
        (False, True): "csv and Weights & Biases", (False, False): "csv",
    }[bool(both[0]), bool(both[1])]  # fmt: skip
    section.put("training.logs", chosen)
    others = names - {"all", "tensorboard", "wandb", "none", "null", "csv"}
    return f"{', '.join(sorted(others))} is not here" if others else None


def put_class(name: str, section: Section) -> None:
    """An optimizer by the name of its class, which is looked up when a run begins and not before."""
    section.put("training.optimizer.optimizer", "other")
    section.put("training.optimizer.other", name)


def unread(values: Mapping[str, Any], prefix: str, why: str, differs: bool = False) -> list[Row]:
    """Rows for keys that nothing was done with, all for one reason."""
    return [
        Row(prefix + key, value, NOT_APPLICABLE, why=why, differs=differs, part=prefix) for key, value in values.items()
    ]


def unknown(values: Mapping[str, Any], prefix: str = "") -> list[Row]:
    """Rows for keys of a part of a file that no trainer of that kind has."""
    return [
        Row(prefix + key, value, UNKNOWN, why="no part of that trainer's files", part=prefix)
        for key, value in values.items()
    ]


def last_name(value: Any) -> str:
    """The last name of a path, on any system."""
    return Path(str(value).replace("\\", "/").rstrip("/")).name
