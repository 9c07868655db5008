"""python -m bench.speed.formats: how far products in 8 bits are from exact ones, by format, in nano's own training.

Steps of a run with the demo's settings are computed again in each format, with all Linears of the blocks in 8 bits, and
the run goes on with the exact step: all formats meet the same weights, LoRA and batches. ``--outliers 32`` makes some
hidden channels of nano's MLPs 32 times as large, and the weights behind them as much smaller, so that nano computes the
same. The first row is the engine's own code, the second is the same without its rotation. The numbers of the others,
which rotate nothing, are rounded to their format and multiplied in fp32, which is kinder to fp8 than a card, whose sums
of fp8 products have fewer bits.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from flux2_train.host.system.bootstrap import import_comfyui

import_comfyui("--cpu")

from bench.learning import cell  # noqa: E402
from bench.learning.__main__ import RESULTS, machine  # noqa: E402
from bench.learning.trainers import by_trainer  # noqa: E402
from flux2_train.host.borrowed import int8  # noqa: E402
from flux2_train.host.borrowed.borrow import linears  # noqa: E402
from flux2_train.host.borrowed.eight_bit import EightBit  # noqa: E402
from flux2_train.planning.certifying import Agreement, within_bounds  # noqa: E402
from flux2_train.train.speed.products import Gradient, Products, agreement_of  # noqa: E402

SMALLEST = torch.finfo(torch.float32).tiny  # scale of zeros alone
BEHIND = {"mlp.0": "mlp.2", "linear1": "linear2"}  # the Linears before and behind a block's activation
APART = 64  # one outlier among so many channels
COLUMNS = (
    ("outputs", median, "{:.1%}"), ("worst outputs", max, "{:.1%}"), ("input gradients", median, "{:.1%}"),
    ("worst input gradients", max, "{:.1%}"), ("adapters", median, "{:.1%}"), ("cosine", median, "{:.4f}"),
    ("certified", median, "{:.1%}"), ("layers", min, "{}"),
)  # fmt: skip


def of_rows(matrix: Tensor) -> Tensor:
    """The largest number of each row (R, 1)."""
    return matrix.abs().amax(1, keepdim=True)


def of_all(matrix: Tensor) -> Tensor:
    """The largest number of the matrix (1, 1)."""
    return matrix.abs().amax().view(1, 1)


def e4m3(matrix: Tensor) -> Tensor:
    """The nearest numbers of fp8 e4m3, up to 448."""
    return matrix.to(torch.float8_e4m3fn).float()


class Format(NamedTuple):
    """``rounded`` gives the nearest numbers of a format, which end at ``most``. The others say how many scales it has.

    It has the functions of ``host.borrowed.int8`` that the engine calls, for numbers that are kept in fp32.
    """

    rounded: Callable[[Tensor], Tensor]
    most: float
    weight: Callable[[Tensor], Tensor]
    tokens: Callable[[Tensor], Tensor]

    def quantised(self, weight: Tensor) -> int8.Numbers:
        return int8.Numbers(*self._numbers(weight, self.weight))

    def product(self, x: Tensor, weight: int8.Numbers) -> Tensor:
        values, scales = self._numbers(x, self.tokens)
        return (values @ weight.values.T * scales * weight.scales.T).to(x.dtype)

    def transposed_product(self, grad: Tensor, weight: int8.Numbers) -> Tensor:
        values, scales = self._numbers(grad * weight.scales.T, self.tokens)
        return (values @ weight.values * scales).to(grad.dtype)

    def _numbers(self, matrix: Tensor, largest: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        scales = (largest(matrix.float()) / self.most).clamp_min(SMALLEST)
        return self.rounded(matrix / scales), scales

    def functions(self) -> dict[str, Callable]:
        """What takes the place of the engine's functions."""
        return {"quantised": self.quantised, "product": self.product, "transposed_product": self.transposed_product}


OWN = "int8, rotated, scales of tokens and output channels"
FORMATS: dict[str, dict[str, Callable]] = {
    OWN: {"quantised": int8.quantised},
    "the same, not rotated": {"group_of": lambda width: 0},
    "int8, scales of tokens and the whole weight": Format(torch.round, 127, of_all, of_rows).functions(),
    "fp8, scales of tokens and output channels": Format(e4m3, 448, of_rows, of_rows).functions(),
    "fp8, scales of tokens and the whole weight": Format(e4m3, 448, of_all, of_rows).functions(),
    "fp8, one scale for each tensor": Format(e4m3, 448, of_all, of_all).functions(),
}


def errors(eight_bit: EightBit, gradient: Gradient) -> dict[str, float]:
    """Relative errors of a step in the format that acts: layers, the adapters' gradient, and that of ``certified``.

    ``certified`` has those layers in 8 bits that are within its bounds, the last two numbers say how many of how many.
    """
    with eight_bit.comparing() as layers:
        exact, _ = gradient()
        sums = list(eight_bit.sums.values())
    whole, chosen = {}, within_bounds(layers)
    for name, own in (("adapters", eight_bit.possible), ("certified", chosen)):
        eight_bit.chosen = frozenset(own)
        with eight_bit.acting():
            whole[name] = agreement_of(exact, gradient()[0])
    eight_bit.chosen = frozenset()
    found = {name: each.error for name, each in whole.items()} | {"cosine": whole["adapters"].cosine}
    for name, kind in (("outputs", int8.product), ("input gradients", int8.transposed_product)):
        own = [Agreement.of(*each[kind].sqrt().tolist()).error for each in sums if kind in each]
        found |= {name: median(own), f"worst {name}": max(own)}
    return {**found, "layers": len(chosen), "of": eight_bit.are}


def plant(model, larger: float) -> None:
    """Make some hidden channels of each MLP ``larger`` times as large, and the weights behind them as much smaller."""
    layers = linears(model)
    for name, layer in layers.items():
        for before, behind in BEHIND.items():
            if name.endswith(before):
                after = layers[f"{name.removesuffix(before)}{behind}"]
                wide = 3 * after.out_features  # hidden channels, the last ones of both
                layer.weight[-wide::APART] *= larger
                after.weight[:, -wide::APART] /= larger


def measured(larger: float, batches: int, apart: int) -> dict[str, list[dict[str, float]]]:
    """By format, ``errors`` of each of so many steps, which are ``apart`` in one run."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in FORMATS}
    steps = count()

    def certify(products: Products, gradient: Gradient, _) -> Iterator:
        """In place of ``Products.certify``. It decides nothing, so that every step asks again, and is exact."""
        if next(steps) % apart == 0:
            products.eight_bit.keep(False)
            for name, functions in FORMATS.items():
                with patch.multiple(int8, **functions):
                    found[name].append(errors(products.eight_bit, gradient))
        yield from ()

    def train(model, *rest):
        plant(model, larger)
        return by_trainer(model, *rest)

    with patch.object(Products, "certify", certify), patch.dict(cell.TRAINERS, ours=train):
        cell.teach(["speed=certified"], 0, cell.Protocol(steps=1 + (batches - 1) * apart))
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table: medians over the steps, the worst layer of all of them, and the fewest layers in the bounds."""
    head = ("products", "outputs", "worst", "input gradients", "worst", "adapters", "cosine", "certified", "its layers")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, steps in found.items():
        cells = [shown.format(of_steps([step[column] for step in steps])) for column, of_steps, shown in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} of {steps[0]['of']} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table for each size of outliers, and write all of them with the machine."""
    options = argparse.ArgumentParser(prog="python -m bench.speed.formats", description=__doc__)
    options.add_argument("--outliers", type=float, nargs="+", default=[1, 8, 32], metavar="TIMES", help="1 plants none")
    options.add_argument("--batches", type=int, default=8, help="steps that are measured")
    options.add_argument("--apart", type=int, default=10, help="steps of the run from one of them to the next")
    options.add_argument("--out", type=Path, default=RESULTS / "speed_formats.json")
    asked = options.parse_args(arguments)
    torch.set_num_threads(1)
    result: dict = {"machine": machine(), "apart": asked.apart, "outliers": {}}
    for larger in asked.outliers:
        result["outliers"][f"{larger:g}"] = found = measured(larger, asked.batches, asked.apart)
        print(f"outliers {larger:g} times as large\n\n{table(found)}\n", flush=True)
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
