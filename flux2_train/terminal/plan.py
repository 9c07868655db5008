"""``plan``: what a run takes, before anything is loaded."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..flavours import FLAVOURS, Flavour, by_sizes
from ..formats import AS_IN_FILE, FORMATS
from ..settings.dataset_folder import DatasetSettings
from ..settings.optimizer import OptimizerSettings
from ..settings.training import TrainingSettings
from .options import add_flags, command, start

DESCRIPTION = """\
Print what fits: for every flavour and card size, or in detail for one flavour and card. Pure arithmetic: of a file
only the header is read. The times come from the given rates, which are no measurement, or with --here from those of
this computer's card.

  python -m flux2_train plan
  python -m flux2_train plan --flavour klein-9b --vram 12 --resolution 768 --rank 32
  python -m flux2_train plan --transformer flux-2-klein-base-9b-fp8.safetensors --vram 12
  python -m flux2_train plan --flavour klein-9b --here
  python -m flux2_train plan --flavour dev --vram 24 --shared 2
  python -m flux2_train plan --flavour dev --vram 24 --cards 2 --accumulate 4

A cell is the precision, how many blocks are streamed from host memory (12s), and seconds per step.
"""
MOST_SHARES = 4096


def add(commands) -> None:
    """Add the command to the parser."""
    parser = command(commands, "plan", run, "print what a run takes on cards of every size", description=DESCRIPTION)
    parser.add_argument("--flavour", choices=FLAVOURS, help="in detail for this flavour (needs --vram)")
    parser.add_argument(
        "--transformer", type=Path, metavar="FILE", help="for this safetensors file as it is stored, or a part of it"
    )
    parser.add_argument("--vram", type=float, metavar="GIB", help="the card's memory")
    add_flags(parser, DatasetSettings, "resolution")
    parser.add_argument(
        "--precision", choices=("bf16", *FORMATS), default="", help="of the transformer (default: the fastest)"
    )
    add_flags(parser, TrainingSettings, "rank", "batch", "accumulate", "targets")
    add_flags(parser, OptimizerSettings, "optimizer")
    parser.add_argument("--ram", type=float, metavar="GB", help="free host memory (default: 64)")
    parser.add_argument("--bus", type=float, metavar="GB/s", help="host to card (default: 20)")
    parser.add_argument("--tflops", type=float, help="what the card computes in bf16 (default: 50)")
    parser.add_argument(
        "--shared", type=int, default=1, metavar="N",
        help="with share_base of Memory in N processes, a card each; --bus is then from card to card",
    )  # fmt: skip
    parser.add_argument(
        "--cards", type=int, default=1, metavar="N",
        help="with cards of Memory: the blocks split over N such cards in one process; with --accumulate they work at "
        "the same time",
    )  # fmt: skip
    parser.add_argument(
        "--here", action="store_true",
        help="this computer's card: its free memory for --vram, and rates measured on it in a few seconds",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Print the table, or one plan."""
    from ..planning.table import cards

    if not 1 <= arguments.shared <= MOST_SHARES:
        raise UserError(f"--shared is {arguments.shared}; it must be a number of processes from 1 to {MOST_SHARES}.")
    _check_cards(arguments)
    question, seconds = _asked(arguments)
    known = arguments.flavour or arguments.transformer
    if (arguments.vram and not known) or (arguments.flavour and not arguments.vram):
        raise UserError("A plan in detail needs --vram, and --flavour or --transformer; without them all are listed.")
    rows = [row for row in FLAVOURS.values() if row.name != "nano"]
    if arguments.flavour:
        rows = [FLAVOURS[arguments.flavour]]
    if arguments.transformer:
        row, file = _of_file(arguments)
        rows, question = [row], replace(question, file=file)
    if arguments.vram:
        _print_one(rows[0], question, arguments)
        print(seconds)
    else:
        print(cards(rows, question))
        print(seconds, file=sys.stderr)


def _check_cards(arguments: argparse.Namespace) -> None:
    """Raise UserError for a number of cards that no model can be split over."""
    rows = [FLAVOURS[arguments.flavour]] if arguments.flavour else FLAVOURS.values()
    least = min(row.double_blocks + row.single_blocks for row in rows if arguments.flavour or row.name != "nano")
    if not 1 <= arguments.cards <= least:
        raise UserError(f"--cards is {arguments.cards}; each card gets a block at least, so it must be 1 to {least}.")
    if arguments.cards > 1 and arguments.shared > 1:
        raise UserError("--cards splits a model in one process and --shared shares it among several: give one of them.")


def _asked(arguments: argparse.Namespace):
    """What to plan for, and where the seconds come from in words. With --here, --vram is this card's free memory."""
    from ..planning.table import ASSUMED, KERNELS, TAKEN, Question

    machine, kernels, source = _here(arguments) if arguments.here else (ASSUMED, KERNELS, "assumed")
    if arguments.here and (arguments.flavour or arguments.transformer) and not arguments.vram:
        arguments.vram = (machine.vram + TAKEN) / 2**30
    if arguments.ram:
        machine = replace(machine, ram=arguments.ram * 1e9)
    if arguments.bus:
        machine = replace(
            machine, bus=arguments.bus * 1e9, bus_unpinned=0.0
        )  # unpinned copies over that bus were not measured
    if arguments.tflops:
        machine = replace(machine, flops=arguments.tflops * 1e12)
    question = Question(arguments.rank, arguments.batch, arguments.targets, arguments.optimizer, arguments.precision,
                        machine, kernels, shares=arguments.shared, cards=arguments.cards,
                        accumulate=arguments.accumulate)  # fmt: skip
    rates = f"{machine.flops / 1e12:.3g} TFLOP/s and {machine.bus / 1e9:.3g} GB/s from host memory"
    return question, f"seconds: {'given' if arguments.bus or arguments.tflops else source}, {rates}"


def _print_one(row: Flavour, question, arguments: argparse.Namespace) -> None:
    """Print one plan in detail. If nothing fits, raises UserError that says why the smallest precision does not."""
    from ..planning.planner import choose
    from ..planning.table import TRIED, best, machine_of, parts, pins_of, work_of

    fastest = best(row, arguments.resolution, arguments.vram, question)
    if fastest is None:
        smallest = question.precision or (AS_IN_FILE if question.file else TRIED[-1][-1])
        work = work_of(row, smallest, arguments.resolution, question)
        choose(work, machine_of(arguments.vram, question), pins_of(row, question))
    precision, plan = fastest
    work = work_of(row, precision, arguments.resolution, question)
    print(f"{row.name}, {precision}\n{parts(plan, row.double_blocks + row.single_blocks, work.cards)}")


def _of_file(arguments: argparse.Namespace):
    """The flavour and the weights of a transformer's file, which is also described in a line. Raises UserError."""
    from ..host.loading.shards import parts_of
    from ..planning.weights import of_files

    path = arguments.transformer
    if not path.is_file():
        raise UserError(f"There is no file {path}; give the path of a transformer's safetensors file.")
    weights = of_files(parts_of(path))
    row = by_sizes((weights.hidden, weights.double, weights.single, weights.context))
    if row is None:
        raise UserError(
            f"{path.name} has {weights.double} double and {weights.single} single blocks of {weights.hidden} features, "
            f"which is none of {', '.join(FLAVOURS)}: nothing is known of its text encoder."
        )
    if arguments.flavour and arguments.flavour != row.name:
        raise UserError(f"{path.name} is {row.name}, not {arguments.flavour}: leave --flavour out.")
    if arguments.precision and weights.quantised:
        raise UserError(f"{path.name} is quantised already and is never quantised twice: leave --precision out.")
    quantised = f"{len(weights.linears) - len(weights.plain)} of {len(weights.linears)} layers quantised"
    print(f"{path.name}: {row.name}, {weights.total / 1e9:.2f} GB of weights, {quantised}")
    return row, weights


def _here(arguments: argparse.Namespace):
    """This computer's card, the precisions that it dequantises in one step, and where its rates come from.

    Raises UserError where there is no card.
    """
    start(arguments)
    from ..formats import PRECISIONS
    from ..host import sizes
    from ..host.system import machine
    from ..train.plans import available

    device = machine.device()
    if device.type == "cpu":
        raise UserError("There is no card here to plan for; give --vram, and its rates with --tflops and --bus.")
    kernels = tuple(filter(sizes.dequantises_in_one_step, PRECISIONS))
    return available(device), kernels, machine.rates_in_words(device).partition(":")[0]
