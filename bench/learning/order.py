"""Does a run's selectivity put runs in the order in which the scorer puts them? Read from what is measured already.

All cells of all questions count, each run once, and each moment of the question ``best``, which is a run of so many
steps: Spearman's rank correlation of selectivity, and of the score by which a run names its best step, with the
concept's score minus the leak. Moments of one run depend on each other, so one row has whole runs alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from flux2_train.evaluate.best import less_leak

MEASURES = SELECTIVITY, OF_WHOLE_RUNS, SCORE = (
    "selectivity", "selectivity of whole runs", "the score that names the best step",
)  # fmt: skip


def order(folder: Path) -> dict:
    """For each measure the correlation over all runs in ``folder`` that have it, its interval, and the points."""
    runs = _runs(folder)
    found = {"question": "selectivity", "protocol": {"concept": "all"}}
    for name in MEASURES:
        points = [{"question": q, **{part: cell[part] for part in ("setting", "seed", "step") if part in cell},
                   "measured": own[name], "scorer": cell["concept"] - cell["leak"]}
                  for q, cell, own in runs if own.get(name) is not None]  # fmt: skip
        if len(points) > 3:
            rho = spearman([p["measured"] for p in points], [p["scorer"] for p in points])
            found[name] = {"runs": len(points), "rho": rho, "interval": interval(rho, len(points)), "points": points}
    return found


def _runs(folder: Path) -> list[tuple[str, dict, dict]]:
    """(question, cell, what the run says of itself) of every run; one that several questions have counts once."""
    seen, runs = set(), []
    for path in sorted(folder.glob("learning_*.json")):
        result = json.loads(path.read_text())
        for cell in (part for whole in result.get("cells", ()) for part in _parts(whole)):
            key = json.dumps([result["machine"], result["protocol"], cell["changes"], cell["seed"], cell.get("step")])
            if key not in seen and cell.get("selectivity") is not None:
                seen.add(key)
                own = {SELECTIVITY: cell["selectivity"], SCORE: _own(cell)}
                whole = {OF_WHOLE_RUNS: cell["selectivity"]} if cell.get("whole", True) else {}
                runs.append((result["question"], cell, own | whole))
    return runs


def _parts(cell: dict) -> list[dict]:
    """The moments of a run that has them, else the run."""
    if "moments" not in cell:
        return [cell]
    last = cell["moments"][-1]
    return [{**cell, **moment, "whole": moment is last} for moment in cell["moments"]]


def _own(cell: dict) -> float | None:
    """The score by which a run names its best step; None where the loss before training was not noted."""
    if cell.get("before") is None:
        return None
    return less_leak(cell["before"] - cell["loss"], 1 / cell["selectivity"])


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, where equal values have the mean of their ranks."""
    a, b = _ranks(a), _ranks(b)
    middle = (len(a) - 1) / 2
    products = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    spread = math.prod(sum((x - middle) ** 2 for x in each) for each in (a, b))
    return products / math.sqrt(spread) if spread else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
            for value in values]  # fmt: skip


def interval(rho: float, count: int) -> tuple[float, float]:
    """95 % of rank correlations, by Fisher's z with the variance of Bonett and Wright 2000 (Psychometrika 65)."""
    z = math.atanh(max(-0.999999, min(rho, 0.999999)))
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / (count - 3))
    return math.tanh(z - half), math.tanh(z + half)


def table(result: dict) -> str:
    """A row for each measure."""
    rows = [["measure", "runs", "rank correlation with concept - leak", "95 %"], ["---"] * 4]
    for name in MEASURES:
        if name in result:
            low, high = result[name]["interval"]
            rows.append([name, str(result[name]["runs"]), f"{result[name]['rho']:.2f}", f"{low:.2f} to {high:.2f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plot(result: dict, path: Path) -> None:
    """The scorer's figure of every run over what the run says of itself."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure, colors = Figure(figsize=(9, 4.2), dpi=100, layout="constrained"), colormaps["tab20"].colors
    questions = list(dict.fromkeys(p["question"] for p in result.get(SELECTIVITY, {}).get("points", ())))
    for axes, name in zip(figure.subplots(1, 2, sharey=True), (SELECTIVITY, SCORE), strict=True):
        points = result.get(name, {}).get("points", ())
        for number, question in enumerate(questions):
            own = [p for p in points if p["question"] == question]
            axes.plot([p["measured"] for p in own], [p["scorer"] for p in own], ".", color=colors[number % len(colors)],
                      label=question)  # fmt: skip
        axes.set_xlabel(name)
        axes.grid(alpha=0.25)
    if questions:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))  # where it hides no point
    figure.axes[0].set_ylabel("concept - leak")
    figure.savefig(path)
