"""python -m bench.speed.cards: seconds of a step on four cards, by arithmetic alone, and what limits them.

The planner chooses precision and layout of a run for the card's memory, with a computer of 64 GB around it. What is
added up is the least that the card needs: the step's operations at the card's peak rate, and the bytes that its kernels
read and write at the card's memory bandwidth. Weights that are streamed come over the bus meanwhile. Bytes are counted
(``kernels``) on blocks of an eighth of the width with an eighth of the tokens, in bf16, and scaled. What dequantising
adds is not counted, and no kernel reaches these rates: a measured step takes longer.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from functools import cache

import torch

from flux2_train.flavours import FLAVOURS, Flavour
from flux2_train.planning.planner import Plan
from flux2_train.planning.table import Question, best
from flux2_train.planning.work import Machine

from .kernels import count
from .problem import Problem, write_weights

SHARE = 8  # of width and tokens that are counted


@dataclass(frozen=True)
class Card:
    """Its memory in GiB, operations per second in bf16 with sums in fp32, bytes per second of memory and of the bus."""

    name: str
    memory: int
    flops: float
    bandwidth: float
    bus: float


# NVIDIA's figures, without sparsity: GeForce RTX 3060 (101 tensor TFLOPS in fp16 with sparsity, half of it without,
# and again half with sums in fp32), the Ada and Blackwell GPU architecture papers, the H100 SXM data sheet. The bus is
# PCI Express 4.0 or 5.0 with 16 lanes.
CARDS = (
    Card("RTX 3060", 12, 25.3e12, 360e9, 31.5e9),
    Card("RTX 4090", 24, 165.2e12, 1008e9, 31.5e9),
    Card("RTX 5090", 32, 209.5e12, 1792e9, 63e9),
    Card("H100 SXM", 80, 989.4e12, 3350e9, 63e9),
)
RESOLUTIONS = (1024, 512)


@dataclass(frozen=True)
class Seconds:
    """Seconds that a step takes for its arithmetic, for reading and writing the card's memory, and for the bus.

    The card does arithmetic and memory one after the other. The bus brings weights at the same time.
    """

    arithmetic: float
    memory: float
    bus: float

    @property
    def all(self) -> float:
        """The whole step."""
        return max(self.arithmetic + self.memory, self.bus)

    @property
    def limit(self) -> str:
        """What takes longest."""
        parts = {"arithmetic": self.arithmetic, "memory": self.memory}
        return "bus" if self.bus >= self.arithmetic + self.memory else max(parts, key=parts.get)


def predicted(row: Flavour, resolution: int, card: Card, rank: int = 16) -> tuple[str, Plan, Seconds] | None:
    """Precision, plan and seconds of a flavour's step on a card; None if no plan fits it."""
    around = Machine(0.0, bus=card.bus, flops=card.flops)
    found = best(row, resolution, card.memory, Question(rank=rank, there=around))
    if found is None:
        return None
    precision, plan = found
    moved = traffic(row, resolution, plan.layout.checkpointing != "off", rank)
    return precision, plan, Seconds(plan.estimate.compute, moved / card.bandwidth, plan.estimate.transfer)


def traffic(row: Flavour, resolution: int, checkpointing: bool, rank: int) -> float:
    """Bytes that a step's kernels read and write, with all blocks recomputed or none."""
    one, double, single = (
        _counted(row.hidden, row.text_length, resolution, checkpointing, rank, *blocks)
        for blocks in ((1, 1), (2, 1), (1, 2))
    )
    # ``one`` has a block of each kind, so ``double - one`` and ``single - one`` are the bytes of one block each.
    rest = one - (double - one) - (single - one)
    return SHARE**2 * (rest + row.double_blocks * (double - one) + row.single_blocks * (single - one))


@cache
def _counted(hidden: int, text: int, resolution: int, checkpointing: bool, rank: int, double: int, single: int) -> int:
    side = round((resolution / 16) / SHARE**0.5)
    sizes = {"hidden": hidden // SHARE, "double": double, "single": single, "context": 128, "tokens": side**2,
             "text": text // SHARE, "rank": max(1, rank // SHARE)}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        problem = Problem(f"{folder}/w.safetensors", dtype="bfloat16", checkpointing=checkpointing, **sizes)
        write_weights(problem)
        return count("ours", problem).bytes


def main(arguments: list[str] | None = None) -> None:
    """Print a Markdown table."""
    options = argparse.ArgumentParser(prog="python -m bench.speed.cards", description=__doc__)
    options.add_argument("--flavours", nargs="+", choices=FLAVOURS, default=["klein-4b", "klein-9b", "dev"])
    options.add_argument("--resolutions", nargs="+", type=int, default=RESOLUTIONS)
    options.add_argument("--rank", type=int, default=16)
    asked = options.parse_args(arguments)
    torch.set_num_threads(1)
    print("| card | flavour | px | plan | arithmetic | memory | bus | seconds | limited by |\n" + "|---" * 9 + "|")
    for card in CARDS:
        for name in asked.flavours:
            for resolution in asked.resolutions:
                print(_row(FLAVOURS[name], resolution, card, asked.rank), flush=True)


def _row(row: Flavour, resolution: int, card: Card, rank: int) -> str:
    found = predicted(row, resolution, card, rank)
    cells = [f"{card.name}, {card.memory} GB", row.name, str(resolution)]
    if found is None:
        return "| " + " | ".join([*cells, "does not fit", *[""] * 5]) + " |"
    precision, plan, seconds = found
    layout = plan.layout.describe(row.double_blocks + row.single_blocks)
    figures = [f"{each:.2f}" for each in (seconds.arithmetic, seconds.memory, seconds.bus, seconds.all)]
    return "| " + " | ".join([*cells, f"{precision}; {layout}", *figures, seconds.limit]) + " |"


if __name__ == "__main__":
    main()
