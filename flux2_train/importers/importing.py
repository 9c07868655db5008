"""Reading another trainer's file: which trainer it is of, its report, and the job that it becomes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..atomic import write_text
from ..errors import UserError
from ..flavours import FLAVOURS
from ..names import counted
from ..settings import job
from . import diffusers, kohya, reading
from .ai_toolkit import translate as ai_toolkit
from .draft import Draft
from .musubi import translate as musubi
from .onetrainer import translate as onetrainer
from .report import NOT_APPLICABLE, USED, Row, counts, table
from .simpletuner import translate as simpletuner

TRAINERS = (simpletuner, ai_toolkit, musubi, onetrainer, diffusers, kohya)
NO_FOLDER = "the folder of images"


@dataclass(frozen=True)
class Imported:
    """What became of a file. ``job`` is None where ``blockers`` say why it is no job of ours."""

    trainer: str
    rows: tuple[Row, ...]
    job: job.Job | None
    blockers: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole report: the table, how many keys became what, and what to know before training."""
        numbers = counts(self.rows)
        verdicts = ", ".join(f"{number} {verdict}" for verdict, number in numbers.items())
        defaults = counted(sum(row.absent for row in self.rows), "further row is", "further rows are")
        parts = [
            f"A configuration of {self.trainer}.", table(self.rows),
            f"{counted(sum(numbers.values()), 'key')}: {verdicts}. {defaults} that trainer's defaults.",
            *(["Rows with ! make the result differ from that trainer's."] if any(r.differs for r in self.rows) else []),
            *(f"Note: {note}" for note in self.notes), *(f"No job: {blocker}" for blocker in self.blockers),
        ]  # fmt: skip
        return "\n\n".join(parts)


def import_file(path: Path, data: Path | None = None, flavour: str = "") -> Imported:
    """Read a file of another trainer. ``data`` is its data set file, or a folder of images; ``flavour`` replaces its.

    Raises UserError if the file cannot be read or is of no trainer that is known.
    """
    content = reading.read(path)
    trainer = next((each for each in TRAINERS if each.recognise(content)), None)
    if trainer is None:
        known = ", ".join(each.NAME for each in TRAINERS)
        raise UserError(
            f"{path.name} cannot be recognised as a configuration of a trainer. Those that are known: {known}; "
            "docs/importing.md says which of their files."
        )
    if flavour and flavour not in FLAVOURS:
        raise UserError(f"There is no flavour {flavour!r}; choose one of {', '.join(FLAVOURS)}.")
    draft = Draft(path, data if data is None or data.is_file() else None, flavour)
    rows = trainer.translate(content, draft)
    if data is not None:
        rows += _given_data(draft, data)
    return _finished(trainer.NAME, draft, rows)


def write_job(made: job.Job, path: Path) -> Path:
    """Write a job file. Raises UserError if something of that name is there; makes the folder."""
    if path.exists():
        raise UserError(f"{path} is there already; name another file, nothing is overwritten.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, made.to_json())
    return path


def _given_data(draft: Draft, data: Path) -> list[Row]:
    if data.is_dir():
        first = draft.datasets[0] if draft.datasets else {}
        draft.datasets = [{**first, "folder": str(data.resolve())}]
        return [Row("--dataset", str(data), USED, "dataset.folder", "one folder in place of all that the file names")]
    if draft.data is not None:
        raise UserError(f"{data.name} is no data set file that goes with {draft.path.name}.")
    return []


def _finished(trainer: str, draft: Draft, rows: list[Row]) -> Imported:
    _choose_flavour(draft)
    rows = [*_with_previews(draft, rows)]
    held_out = [_merged(draft.common, each) for each in draft.values.get("held_out", []) if "folder" in each]
    values = {**draft.values, "dataset": _datasets(draft), "held_out": held_out, "unknown": draft.unknown}
    made = None
    if not draft.blockers:
        try:
            made = job.read(values)
        except UserError as error:
            draft.blockers.append(f"its settings do not go together here: {error}")
    return Imported(trainer, tuple(rows), made, tuple(draft.blockers), tuple(draft.notes))


def _choose_flavour(draft: Draft) -> None:
    if draft.flavour:
        draft.values.setdefault("model", {})["flavour"] = draft.flavour
    elif "flavour" not in draft.values.get("model", {}) and not draft.blockers:
        first = next(iter(FLAVOURS))
        draft.notes.append(f"The file does not say which FLUX.2; the job is for {first}. --flavour chooses another.")


def _with_previews(draft: Draft, rows: list[Row]) -> Iterator[Row]:
    """Previews need a prompt: without one nothing is painted, and the rows about previews say so."""
    if draft.values.get("previews", {}).get("prompts"):
        yield from rows
        return
    draft.values.pop("previews", None)
    for row in rows:
        if row.ours.startswith("previews."):
            why = "the file has no prompt to paint"
            yield replace(row, verdict=NOT_APPLICABLE, ours="", why=why, differs=False)
        else:
            yield row


def _datasets(draft: Draft) -> list[dict[str, Any]]:
    """The data sets with what is common to them; one without a folder says that it is missing."""
    found = [_merged(draft.common, each) for each in draft.datasets or [{}]]
    for number, dataset in enumerate(found):
        if "folder" not in dataset:
            name = "dataset.folder" if len(found) == 1 else f"dataset.{number}.folder"
            dataset["folder"] = NO_FOLDER
            draft.unknown.append(f"{NO_FOLDER} is not in {draft.path.name}: set {name}")
            draft.notes.append(
                f"The file names no folder of images: give --dataset FOLDER, or train with --set {name}=FOLDER "
                "--set unknown=[]."
            )
    return found


def _merged(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``own`` values, and the common ones that it lacks, section by section."""
    merged = {**common, **own}
    for name, section in common.items():
        if isinstance(section, dict) and isinstance(own.get(name), dict):
            merged[name] = {**section, **own[name]}
    return merged


def documents() -> dict[str, dict[str, tuple]]:
    """The tables of every trainer by its name, for docs/importing.md."""
    return {trainer.NAME: trainer.TABLES for trainer in TRAINERS}
