"""Is the step that a run itself names best the best one by the scorer? Ten runs, six moments of each.

A moment is when the run measures its validation loss and selectivity (each sixth of its steps). Its score is the
concept's score minus the leak, of pictures sampled in 4 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from .cell import Protocol, adapted, quick_score, steps_of, teach
from .trainers import Spent

MOMENTS = 6
NEAR = 3  # points within which the named step is as good as the best
SETTINGS = {
    "the demo": (), "no preservation": ("preservation=0",), "rate 5e-3": ("learning_rate=5e-3",),
    "5 pictures": ("pictures=5", "preservation=0.1"), "rank 4, rate 1e-3": ("rank=4", "learning_rate=1e-3"),
}  # fmt: skip


def measure(settings: Sequence[str], seed: int, protocol: Protocol) -> dict:
    """``moments``: step, concept, leak, validation loss and selectivity of each; ``named``: the run's best step."""
    from flux2_train.evaluate.best import best_step

    every = max(1, steps_of(settings, protocol) // MOMENTS)
    scored: dict[int, dict] = {}

    def watch(step: int, spent: Spent, changes) -> None:
        if step % every == 0:
            model = adapted(changes())
            concept, leak = (quick_score(model, protocol, trigger) for trigger in (True, False))
            scored[step] = {"step": step, "concept": concept, "leak": leak}

    history = teach((*settings, f"validate={every}"), seed, protocol, watch).history
    for step, moment in scored.items():
        taught, leaked = history.selectivity[step]
        moment |= {"loss": history.validation[step], "selectivity": taught / leaked if leaked else None}
    return {"moments": list(scored.values()), "before": history.validation[0], "named": best_step(history)}


def table(result: dict) -> str:
    """A row for each run: what the scorer finds at the step that the run named, at its best, and at the last one."""
    rows = [["run", "seed", "named step", "its score", "best step", "its score", "lost", "score of the last step"],
            ["---"] * 8]  # fmt: skip
    runs = [found(cell) for cell in result["cells"]]
    for cell, run in zip(result["cells"], runs, strict=True):
        scores = (run.named_score, run.best_score, run.lost, run.last_score)
        named, best, lost, last = (f"{each:.0f}" for each in scores)
        rows.append([cell["setting"], str(cell["seed"]), str(cell["named"]), named, str(run.best), best, lost, last])
    near = sum(run.lost <= NEAR for run in runs)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", f"Within {NEAR} points of the best: {near} of {len(runs)} runs."])


def found(cell: dict) -> SimpleNamespace:
    """The scores of a run: at the step that it named, at the best one, and at the last one."""
    scores = {moment["step"]: moment["concept"] - moment["leak"] for moment in cell["moments"]}
    best = max(scores, key=scores.get)
    named, last = scores[cell["named"]], list(scores.values())[-1]
    return SimpleNamespace(
        best=best, best_score=scores[best], named_score=named, lost=scores[best] - named, last_score=last
    )


def plot(result: dict, path: Path) -> None:
    """The score over the steps of each run, with the step that the run named."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), dpi=100, layout="constrained")
    axes, colours = figure.subplots(), {}
    for cell in result["cells"]:
        scores = {moment["step"]: moment["concept"] - moment["leak"] for moment in cell["moments"]}
        new = cell["setting"] not in colours
        colour = colours.setdefault(cell["setting"], f"C{len(colours)}")
        axes.plot(list(scores), list(scores.values()), color=colour, label=cell["setting"] if new else None)
        axes.plot([cell["named"]], [scores[cell["named"]]], "o", color=colour)
    axes.set_xlabel("step; a dot is the step that the run named")
    axes.set_ylabel("concept - leak")
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
