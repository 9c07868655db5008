"""All questions, and their cells (a setting with one seed), measured in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import NamedTuple

import torch

from . import best, reach, table
from .cell import Protocol, measure
from .questions import QUESTIONS, Settings


@dataclass(frozen=True)
class Question:
    """Its settings, what is measured of a run, and how the result is shown."""

    settings: Settings
    measure: Callable[[Sequence[str], int, Protocol], dict]
    shown: object  # a module with ``table`` and ``plot``


def _cell(settings: Sequence[str], seed: int, protocol: Protocol) -> dict:
    return asdict(measure(settings, seed, protocol))


ALL = {name: Question(settings, _cell, table) for name, settings in QUESTIONS.items()} | {
    "best": Question(best.SETTINGS, best.measure, best), "reach": Question(reach.SETTINGS, reach.measure, reach),
}  # fmt: skip


class Cell(NamedTuple):
    """A setting of a question, with one seed."""

    question: str
    setting: str
    seed: int
    protocol: Protocol


def measured(cells: list[Cell], processes: int) -> Iterator[tuple[Cell, dict]]:
    """What is measured of each cell, in their order, by so many processes side by side.

    Processes are new ones, because torch's threads do not survive a fork. They import this module by its name, which
    they could not do with ``__main__``.
    """
    if processes == 1:
        yield from ((cell, _one(cell)) for cell in cells)
        return
    threads = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        yield from zip(cells, pool.map(_one, cells), strict=True)


def _one(cell: Cell) -> dict:
    question = ALL[cell.question]
    return question.measure(question.settings[cell.setting], cell.seed, cell.protocol)
