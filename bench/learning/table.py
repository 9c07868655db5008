"""Cells of a question as one table and one plot, with intervals over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

# Student's t at 97.5 % for 1 to 9 degrees of freedom; from 10 on it is within 0.01 of T_FAR + 2.65 / degrees
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
T_FAR = 1.96
COLUMNS = {
    "concept": "concept", "off": "off", "few": "in 4 steps", "few_off": "off in 4 steps", "leak": "leak",
    "kept": "kept %", "far": "far", "loss": "validation loss", "selectivity": "selectivity", "steps": "steps",
    "seconds": "seconds",
}  # fmt: skip
TIMES = {"far": 1000, "off": 1000, "few_off": 1000}
DIGITS = {"far": 2, "off": 1, "few_off": 1, "loss": 4, "selectivity": 1}  # the others have none
SCORES = ("concept", "leak", "kept")  # of 0 to 100, in the plot


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half of its 95 % interval by Student's t); the half is 0 for a single value, of which nothing is known."""
    mean, degrees = statistics.mean(values), len(values) - 1
    if not degrees:
        return mean, 0.0
    t = T[degrees - 1] if degrees <= len(T) else T_FAR + 2.65 / degrees
    return mean, t * statistics.stdev(values) / len(values) ** 0.5


def by_setting(cells: Sequence[dict]) -> dict[str, list[dict]]:
    """The cells of each setting, in the order in which they came."""
    found: dict[str, list[dict]] = {}
    for cell in cells:
        found.setdefault(cell["setting"], []).append(cell)
    return found


def table(result: dict) -> str:
    """A Markdown table: a row for the base model, and one for each setting, mean ± half of the 95 % interval."""
    base = {name: _words(name, [value]) for name, value in result["base"].items()}
    rows = [["base", "", *(base.get(name, "") for name in COLUMNS)]]
    for setting, cells in by_setting(result["cells"]).items():
        values = ([cell[name] for cell in cells if cell[name] is not None] for name in COLUMNS)
        rows.append([setting, str(len(cells)), *map(_words, COLUMNS, values)])
    head = [result["question"], "seeds", *COLUMNS.values()]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _words(name: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, half = interval([TIMES.get(name, 1) * value for value in values])
    digits = DIGITS.get(name, 0)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if half else "")


def plot(result: dict, path: Path) -> None:
    """Concept, leak and kept of each setting as points with their intervals, and each cell as a small dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), dpi=100, layout="constrained")
    axes, groups = figure.subplots(), by_setting(result["cells"])
    for shift, (name, colour) in enumerate(zip(SCORES, ("#6b4fe0", "#c9763b", "#3b8c4e"), strict=True)):
        places = [place + 0.2 * (shift - 1) for place in range(len(groups))]
        means, halves = zip(*(interval([cell[name] for cell in cells]) for cells in groups.values()), strict=True)
        axes.errorbar(places, means, halves, fmt="o", color=colour, capsize=3, label=COLUMNS[name])
        for place, cells in zip(places, groups.values(), strict=True):
            axes.plot([place] * len(cells), [cell[name] for cell in cells], ".", color=colour, alpha=0.4)
    axes.set_xticks(range(len(groups)), list(groups), rotation=20)
    axes.set_ylim(0, 105)
    axes.set_title(f"{result['question']}: {result['protocol']['concept']}")
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # right of the plot, where it hides no point
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
