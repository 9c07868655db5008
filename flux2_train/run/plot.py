"""The loss curve as a picture."""

from __future__ import annotations

import io

import torch
from PIL import Image

from ..options import TimestepConfig
from . import times
from .history import History

PREVIEW_DRAWS = 4000


def loss_plot(history: History, title: str = "", size: tuple[int, int] = (800, 480)) -> Image.Image:
    """Raw and smoothed loss, validation and preservation where there are any. ``size`` in pixels."""
    figure = _figure(size)
    axes = figure.add_subplot(xlabel="step", ylabel="loss", title=title)
    steps = range(1, len(history.losses) + 1)
    axes.plot(steps, history.losses, color="#9db8d9", linewidth=1, label="loss")
    axes.plot(steps, history.smoothed, color="#1f4e8c", linewidth=2, label="smoothed")
    if any(history.preservation):
        axes.plot(steps, history.preservation, color="#c9763b", linewidth=1, label="preservation")
    if history.validation:
        axes.plot(*zip(*sorted(history.validation.items()), strict=True), "o--", color="#3b8c4e", label="validation")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend()
    return _picture(figure)


def times_plot(config: TimestepConfig, tokens: int, size: tuple[int, int] = (800, 400)) -> Image.Image:
    """How often each time is drawn for an image of ``tokens`` tokens, and what it counts. ``size`` in pixels."""
    t = times.draw(config, [0.0] * PREVIEW_DRAWS, tokens, 0, 0, torch.Generator().manual_seed(0))
    figure = _figure(size)
    axes = figure.add_subplot(xlabel="t (1 is pure noise)", ylabel="how often", xlim=(0, 1))
    axes.hist(t.numpy(), bins=50, range=(0, 1), density=True, color="#9db8d9", label=config.distribution)
    grid = torch.linspace(0.02, 1, 200)
    weights = times.weights(config, grid)
    if weights is not None:
        axes.plot(grid.numpy(), weights.numpy(), color="#c9763b", label="weight")
    axes.grid(alpha=0.25)
    axes.legend()
    return _picture(figure)


def _figure(size: tuple[int, int]):
    from matplotlib.figure import Figure  # without pyplot: no global state, safe in ComfyUI's worker thread

    return Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, layout="constrained")


def _picture(figure) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return Image.open(png).convert("RGB")
