"""The loss curve as a picture."""

from __future__ import annotations

import io

from PIL import Image

from .trainer import History


def loss_plot(history: History, title: str = "", size: tuple[int, int] = (800, 480)) -> Image.Image:
    """Raw and smoothed loss, validation and preservation where there are any. ``size`` in pixels."""
    # Figure without pyplot: no global state, safe in ComfyUI's worker thread
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, layout="constrained")
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
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return Image.open(png).convert("RGB")
