"""How many seconds until the concept's score is 60: LoRA Trainer as it comes against TrainLoraNode, by turns.

The score is that of pictures sampled in 4 steps, after every 20 training steps. Seconds count from the call of the
trainer, so that its preparations count, and leave out what the scoring took.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .cell import Protocol, adapted, quick_score, teach
from .table import by_setting, interval
from .trainers import Enough, Spent

WANTED, EVERY, MOST = 60, 20, 600  # score; steps between two scores, and until a run is given up
SETTINGS = {
    f"{name}, {rate}": (*settings, f"learning_rate={rate}", f"steps={MOST}")
    for rates in zip(("1e-3", "2e-3", "5e-3"), ("2e-3", "5e-3", "1e-2"), strict=True)
    for name, settings, rate in zip(
        ("LoRA Trainer", "TrainLoraNode"), (("recipe=none",), ("trainer=node",)), rates, strict=True
    )
}


def measure(settings: Sequence[str], seed: int, protocol: Protocol) -> dict:
    """``curve``: (step, seconds, processor seconds, score) until the score is WANTED; ``reached`` whether it is."""
    curve: list[tuple] = []

    def watch(step: int, spent: Spent, changes) -> None:
        if step % EVERY == 0 or step == protocol.steps:
            curve.append((step, *spent, quick_score(adapted(changes()), protocol)))
            if curve[-1][-1] >= WANTED:
                raise Enough

    teach(settings, seed, protocol, watch)
    return {"curve": curve, "reached": curve[-1][-1] >= WANTED}


def table(result: dict) -> str:
    """A row for each setting: in how many runs the score was reached, and after how much; of those that did."""
    rows = [["trainer", "seeds", "reached", "steps", "seconds", "of the processor", "highest score"], ["---"] * 7]
    for setting, cells in by_setting(result["cells"]).items():
        ends = [cell["curve"][-1] for cell in cells if cell["reached"]]
        highest = [max(point[-1] for point in cell["curve"]) for cell in cells]
        rows.append([setting, str(len(cells)), str(len(ends)), *(_words([end[i] for end in ends]) for i in range(3)),
                     _words(highest)])  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _words(values: list[float]) -> str:
    if not values:
        return ""
    mean, half = interval(values)
    return f"{mean:.0f}" + (f" ± {half:.0f}" if half else "")


def plot(result: dict, path: Path) -> None:
    """The score over the seconds of each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    for number, (setting, cells) in enumerate(by_setting(result["cells"]).items()):
        for cell in cells:
            _, seconds, _, scores = zip(*cell["curve"], strict=True)
            axes.plot(seconds, scores, color=f"C{number}", label=setting if cell is cells[0] else None)
    axes.axhline(WANTED, color="#888", linewidth=1)
    axes.set_xlabel("seconds")
    axes.set_ylabel("score of the concept")
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
