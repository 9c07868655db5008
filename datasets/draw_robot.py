"""Draws the example data set ``robot``: a little robot in many places, with captions and the trigger word ``zbot``.

Run ``python datasets/draw_robot.py`` to draw it anew; the same files come out every time.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

FOLDER = Path(__file__).parent / "robot"
SCALE = 4  # drawn larger and scaled down, for smooth edges

SIZES = ((256, 256), (320, 208), (208, 320), (288, 224))
PLACES = (
    ("green meadow", "#8ccf6b", "#bfe3ff"),
    ("sandy desert", "#e8c58a", "#fff1cf"),
    ("night street", "#3a3f57", "#1b1e33"),
    ("blue sea", "#2f78b7", "#aee0f5"),
    ("snowy field", "#eef4fa", "#c3d6e8"),
    ("red planet", "#b5553a", "#f2b58f"),
    ("purple room", "#7b5ea7", "#c9b6e4"),
)
POSES = (("standing", 0.5), ("waving", 0.35), ("jumping", 0.65))
BODY, LIGHT, DARK, EYE = "#f2a33a", "#ffd58a", "#4a3b2a", "#3ee6ff"


def draw_robot(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, pose: str) -> None:
    """The figure, centred on (x, y): square body, antenna, one cyan visor, two legs."""

    def box(left, top, right, bottom, fill, radius=0.08):
        edges = [x + left * size, y + top * size, x + right * size, y + bottom * size]
        draw.rounded_rectangle(edges, radius=radius * size, fill=fill, outline=DARK, width=max(1, int(size * 0.03)))

    legs = 0.62 if pose == "jumping" else 0.78
    box(-0.24, 0.35, -0.08, legs, BODY)
    box(0.08, 0.35, 0.24, legs, BODY)
    raised = -0.55 if pose == "waving" else 0.0
    box(-0.52, -0.02, -0.34, 0.34, LIGHT)
    box(0.34, min(raised, -0.02), 0.52, 0.34 + raised * 0.6, LIGHT)
    box(-0.36, -0.08, 0.36, 0.42, BODY)
    box(-0.12, 0.08, 0.12, 0.26, LIGHT)
    box(-0.3, -0.56, 0.3, -0.1, BODY, 0.14)
    box(-0.22, -0.42, 0.22, -0.24, EYE, 0.09)
    draw.line([x, y - 0.56 * size, x, y - 0.76 * size], fill=DARK, width=int(size * 0.05))
    box(-0.07, -0.86, 0.07, -0.72, EYE, 0.07)


def draw_scene(index: int) -> tuple[Image.Image, str]:
    """Picture and caption number ``index``."""
    width, height = SIZES[index % len(SIZES)]
    place, ground, sky = PLACES[index % len(PLACES)]
    pose, across = POSES[index % len(POSES)]
    image = Image.new("RGB", (width * SCALE, height * SCALE), sky)
    draw = ImageDraw.Draw(image)
    horizon = height * SCALE * (0.55 + 0.05 * (index % 3))
    draw.rectangle([0, horizon, width * SCALE, height * SCALE], fill=ground)
    size = min(width, height) * SCALE * (0.36 + 0.06 * (index % 4))
    lift = 0.25 * size if pose == "jumping" else 0.0
    draw_robot(draw, width * SCALE * across, height * SCALE * 0.62 - lift, size, pose)
    return image.resize((width, height), Image.Resampling.LANCZOS), f"[trigger] robot {pose} on a {place}"


def main(count: int = 14) -> None:
    FOLDER.mkdir(exist_ok=True)
    for index in range(count):
        image, caption = draw_scene(index)
        image.save(FOLDER / f"robot_{index + 1:02}.png", optimize=True)
        (FOLDER / f"robot_{index + 1:02}.txt").write_text(caption + "\n")


if __name__ == "__main__":
    main()
