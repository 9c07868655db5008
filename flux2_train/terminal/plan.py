"""``plan``: what a run takes, before anything is loaded."""

from __future__ import annotations

import argparse

from ..adapters.targets import PRESETS
from ..errors import UserError
from ..flavours import FLAVOURS, QUANTISED
from ..options import OptimizerConfig
from .options import command

DESCRIPTION = """\
Print what fits: for every flavour and card size, or in detail for one flavour and card. Pure arithmetic: no model is
read, and the times come from the given rates, which are no measurement.

  python -m flux2_train plan
  python -m flux2_train plan --flavour klein-9b --vram 12 --resolution 768 --rank 32

A cell is the precision, how many blocks are streamed from host memory (12s), and seconds per step.
"""


def add(commands) -> None:
    """Add the command to the parser."""
    made = command(commands, "plan", run, "print what a run takes on cards of every size", description=DESCRIPTION)
    made.add_argument("--flavour", choices=FLAVOURS, help="in detail for this flavour (needs --vram)")
    made.add_argument("--vram", type=float, metavar="GIB", help="the card's memory")
    made.add_argument("--resolution", type=int, default=1024, help="pixels of a square image (default: 1024)")
    made.add_argument(
        "--precision", choices=("bf16", *QUANTISED), default="", help="of the transformer (default: what is fastest)"
    )
    made.add_argument("--rank", type=int, default=16)
    made.add_argument("--batch", type=int, default=1)
    made.add_argument("--targets", choices=PRESETS, default="all")
    made.add_argument("--optimizer", choices=OptimizerConfig.NAMES, default="adamw")
    made.add_argument("--ram", type=float, default=64, metavar="GB", help="free host memory (default: 64)")
    made.add_argument("--bus", type=float, default=20, metavar="GB/s", help="host to card (default: 20)")
    made.add_argument("--tflops", type=float, default=50, help="what the card computes in bf16 (default: 50)")


def run(arguments: argparse.Namespace) -> None:
    """Print the table, or one plan."""
    from ..memory.planner import choose
    from ..memory.table import Question, best, cards, machine_of, parts, work_of

    if bool(arguments.flavour) != bool(arguments.vram):
        raise UserError("A plan in detail needs both --flavour and --vram; without them all are listed.")
    asked = Question(
        arguments.rank, arguments.batch, arguments.targets, arguments.optimizer, arguments.precision,
        arguments.ram * 1e9, arguments.bus * 1e9, arguments.tflops * 1e12,
    )  # fmt: skip
    if not arguments.flavour:
        print(cards([row for row in FLAVOURS.values() if row.name != "nano"], asked))
        return
    row = FLAVOURS[arguments.flavour]
    found = best(row, arguments.resolution, arguments.vram, asked)
    if found is None:  # say why, of the smallest form
        last = asked.precision or "nvfp4"
        choose(work_of(row, last, arguments.resolution, asked), machine_of(arguments.vram, asked))
    precision, plan = found
    print(f"{row.name}, {precision}\n{parts(plan, row.double_blocks + row.single_blocks)}")
