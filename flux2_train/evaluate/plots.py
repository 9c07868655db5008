"""The loss curve and the distribution of times as pictures."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..settings.timesteps import TimestepSettings
from ..train import timesteps
from ..train.history import History

PREVIEW_DRAWS = 4000
PANEL = 160  # pixels of height


def loss_plot(history: History, title: str = "", size: tuple[int, int] = (800, 480)) -> Image.Image:
    """Raw and smoothed loss, and below them a panel for validation and one for preservation, if the run has them.

    ``size`` in pixels is that of the loss alone; each panel adds PANEL to the height.
    """
    panels = [_draw_loss, *([_draw_validation] if history.validation else [])]
    panels += [_draw_preservation] if any(history.preservation) else []
    extra = len(panels) - 1
    figure = _figure((size[0], size[1] + extra * PANEL))
    heights = [size[1], *[PANEL] * extra]
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for draw, axis in zip(panels, axes, strict=True):
        draw(axis, history)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.legend()
    axes[0].set_title(title)
    axes[-1].set_xlabel("step")
    return _picture(figure)


def _draw_loss(axis, history: History) -> None:
    steps = range(1, len(history.losses) + 1)
    axis.plot(steps, history.losses, color="#9db8d9", linewidth=1, label="loss")
    axis.plot(steps, history.smoothed, color="#1f4e8c", linewidth=2, label="smoothed")
    axis.set_ylabel("loss")


def _draw_validation(axis, history: History) -> None:
    """Measured at fixed noise and times: its level cannot be compared with the loss, only its direction matters."""
    axis.plot(*zip(*sorted(history.validation.items()), strict=True), "o--", color="#3b8c4e", label="validation")


def _draw_preservation(axis, history: History) -> None:
    """Of the steps that preserve; the others have 0."""
    steps, values = zip(*((n, value) for n, value in enumerate(history.preservation, 1) if value), strict=True)
    axis.plot(steps, values, color="#c9763b", linewidth=1, label="preservation")


def times_plot(config: TimestepSettings, tokens: int, size: tuple[int, int] = (800, 400)) -> Image.Image:
    """How often each time is drawn for an image of ``tokens`` tokens, and its weight. ``size`` in pixels."""
    t = timesteps.draw(config, [0.0] * PREVIEW_DRAWS, tokens, 0, 0, torch.Generator().manual_seed(0))
    figure = _figure(size)
    axes = figure.add_subplot(xlabel="t (1 is pure noise)", ylabel="how often", xlim=(0, 1))
    axes.hist(t.numpy(), bins=50, range=(0, 1), density=True, color="#9db8d9", label=config.distribution)
    grid = torch.linspace(0.02, 1, 200)
    weights = timesteps.weights(config, grid)
    if weights is not None:
        axes.plot(grid.numpy(), weights.numpy(), color="#c9763b", label="weight")
    axes.grid(alpha=0.25)
    axes.legend()
    return _picture(figure)


def _figure(size: tuple[int, int]):
    """A figure of (width, height) in pixels. Its margins are fixed: measuring the labels would take half the time."""
    from matplotlib.figure import Figure  # without pyplot: no global state, safe in ComfyUI's worker thread

    width, height = size
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    figure.subplots_adjust(left=75 / width, right=1 - 15 / width, bottom=50 / height, top=1 - 35 / height, hspace=0.08)
    return figure


def _picture(figure) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
