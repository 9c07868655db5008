"""Draws the templates' pictures, and makes README's pictures of a finished demo and of the browser.

``python scripts/make_pictures.py [DIR]`` (in the environment of scripts/test) after ``scripts/demo --out DIR``; without
a finished demo it only draws. ``--screens DIR`` also takes screenshots that tests/nodes left there (docs/testing.md).
A drawing shows what a template is for. Pictures that nano painted are labelled nano.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from workflow_templates import TEMPLATES  # noqa: E402

SIDE, GAP = 480, 14
PAPER, CARD, INK, FAINT, LINE = "#1d1a2b", "#2b2740", "#f1effa", "#a9a3c7", "#8f7dff"
GREEN, AMBER = "#62d2a2", "#e0a458"
LEFT, RIGHT = (40, 176, 196, 332), (284, 176, 440, 332)


def dataset(name: str, count: int) -> list[Image.Image]:
    """The first pictures of one of the pack's data sets."""
    paths = sorted((ROOT / "datasets" / name).glob("*.png"))
    return [Image.open(path).convert("RGB") for path in paths[:count]]


class Drawing:
    """A square picture with a title, a line below it, and what is drawn between them."""

    def __init__(self, title: str, line: str):
        self.image = Image.new("RGB", (SIDE, SIDE), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.draw.rounded_rectangle((0, 0, SIDE - 1, 12), 0, LINE)
        self.text((SIDE // 2, 74), title, 44, INK)
        self.text((SIDE // 2, 436), line, 23, FAINT)

    def text(self, at: tuple[int, int], text: str, size: int, colour: str) -> None:
        self.draw.text(at, text, colour, font_size=size, anchor="mm")

    def card(self, box: tuple[int, int, int, int], colour: str = CARD, edge: str = LINE) -> None:
        self.draw.rounded_rectangle(box, 14, colour, edge, 3)

    def picture(self, image: Image.Image, box: tuple[int, int, int, int], label: str = "") -> None:
        """A picture with a frame, and a label below it."""
        self.draw.rounded_rectangle([box[0] - 4, box[1] - 4, box[2] + 3, box[3] + 3], 8, FAINT)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        self.image.paste(square.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS), box[:2])
        if label:
            self.text(((box[0] + box[2]) // 2, box[3] + 24), label, 22, INK)

    def pile(self, images: list[Image.Image], box: tuple[int, int, int, int]) -> None:
        """Four pictures in a square."""
        half = (box[2] - box[0] - GAP) // 2
        for number, image in enumerate(images[:4]):
            left, top = box[0] + (half + GAP) * (number % 2), box[1] + (half + GAP) * (number // 2)
            self.picture(image, (left, top, left + half, top + half))

    def arrow(self, colour: str = LINE, start: tuple[int, int] = (212, 254), end: int = 268) -> None:
        x, y = start
        self.draw.line((x, y, end - 12, y), colour, 7)
        self.draw.polygon([(end, y), (end - 18, y - 13), (end - 18, y + 13)], colour)

    def lora(self, box: tuple[int, int, int, int] = RIGHT, label: str = "LoRA", colour: str = LINE) -> None:
        """A LoRA as what it is: a tall thin matrix times a flat one."""
        left, top, right, bottom = box
        self.card(box)
        across, thick = right - left, (right - left) // 7
        tall = left + across // 7
        self.draw.rounded_rectangle((tall, top + 22, tall + thick, bottom - 48), 5, colour)
        self.draw.rounded_rectangle((tall + thick + 10, top + 22, right - across // 7, top + 22 + thick), 5, GREEN)
        self.text(((left + right) // 2, bottom - 22), label, 22, INK)

    def layers(self, box: tuple[int, int, int, int], count: int, label: str) -> None:
        """A model: a stack of layers, higher for a larger one."""
        left, top, right, bottom = box
        step = (bottom - top - 40) / count
        for number in range(count):
            y = bottom - 40 - (number + 1) * step
            self.draw.rounded_rectangle((left, y + 3, right, y + step - 2), 4, CARD, LINE, 2)
        self.text(((left + right) // 2, bottom - 14), label, 24, INK)


def quick_start() -> Drawing:
    drawing = Drawing("Quick start", "nothing to download, no card needed")
    painted = Image.open(ROOT / "docs" / "before_after.png").convert("RGB")
    side = 256  # of the pictures in it: the first column, base above and LoRA below
    base, lora = (painted.crop((12, 12 + 46 + row * 302, 12 + side, 12 + 46 + row * 302 + side)) for row in (0, 1))
    drawing.picture(base, LEFT, "nano")
    drawing.picture(lora, RIGHT, "nano + LoRA")
    drawing.arrow()
    return drawing


def model(title: str, line: str, layers: int, card: str) -> Drawing:
    drawing = Drawing(title, line)
    drawing.pile(dataset("robot", 4), (30, 190, 166, 326))
    drawing.arrow(start=(180, 258), end=216)
    drawing.layers((226, 140, 316, 372), layers, card)
    drawing.arrow(start=(326, 258), end=362)
    drawing.lora((368, 196, 460, 316))
    return drawing


def character() -> Drawing:
    drawing = Drawing("Character", "DOP keeps what the class word means")
    drawing.pile(dataset("character", 4), (60, 150, 240, 330))
    drawing.text((150, 366), "trigger: learned", 24, GREEN)
    drawing.card((276, 146, 436, 334), CARD, GREEN)
    drawing.draw.arc((322, 172, 390, 250), 180, 360, GREEN, 12)  # a lock
    drawing.draw.rounded_rectangle((308, 212, 404, 300), 12, GREEN)
    drawing.draw.ellipse((346, 240, 366, 260), PAPER)
    drawing.draw.rectangle((352, 252, 360, 282), PAPER)
    drawing.text((356, 366), "class: kept", 24, GREEN)
    return drawing


def style() -> Drawing:
    drawing = Drawing("Style", "many things, one look")
    drawing.pile(dataset("style", 4), (40, 164, 212, 336))
    drawing.arrow(start=(228, 250), end=268)
    drawing.lora((284, 172, 440, 328), "style LoRA", AMBER)
    return drawing


def edit() -> Drawing:
    drawing = Drawing("Edit", "with reference pictures")
    drawing.picture(dataset("edit-reference", 1)[0], LEFT, "before")
    drawing.picture(dataset("edit", 1)[0], RIGHT, "after")
    drawing.arrow(GREEN)
    drawing.text((240, 140), '"make it ..."', 28, AMBER)
    return drawing


def distilled() -> Drawing:
    drawing = Drawing("Base to distilled", "train on one, preview on the other")
    drawing.layers((50, 140, 170, 372), 8, "base: trained")
    drawing.lora((192, 192, 288, 308), "LoRA")
    drawing.layers((310, 140, 430, 372), 8, "distilled: paints")
    return drawing


def compare() -> Drawing:
    drawing = Drawing("Compare", "LoRAs and strengths, one seed")
    colours = (("#46406b", "#6c60b4", "#8f7dff"), ("#3b5a4e", "#4f9478", "#62d2a2"), ("#5f4c34", "#a07a48", "#e0a458"))
    for row, shades in enumerate(colours):
        for column, shade in enumerate(shades):
            left, top = 106 + column * 96, 128 + row * 88
            drawing.draw.rounded_rectangle((left, top, left + 84, top + 76), 10, CARD, FAINT, 2)
            drawing.draw.ellipse((left + 22, top + 18, left + 62, top + 58), shade)
    for column, strength in enumerate(("0.6", "0.8", "1")):
        drawing.text((148 + column * 96, 402), strength, 22, INK)
    return drawing


def go_on() -> Drawing:
    drawing = Drawing("Continue a LoRA", "from a file of any trainer")
    drawing.lora(LEFT, "first LoRA", FAINT)
    drawing.arrow()
    drawing.lora(RIGHT, "goes on")
    drawing.text((240, 370), "+ more pictures or steps", 24, AMBER)
    return drawing


DRAWN = {
    "flux2_lora_nano": quick_start,
    "flux2_lora_klein-9b": lambda: model("klein 9B", "train a LoRA on 16 GB", 10, "9B"),
    "flux2_lora_klein-4b": lambda: model("klein 4B", "train a LoRA on 8 GB", 6, "4B"),
    "flux2_lora_dev": lambda: model("dev", "train a LoRA on 24 GB", 16, "32B"),
    "flux2_lora_character": character, "flux2_lora_style": style, "flux2_lora_edit": edit,
    "flux2_lora_distilled": distilled, "flux2_lora_compare": compare, "flux2_lora_continue": go_on,
}  # fmt: skip


SCREENS = {"templates.png": "templates.jpg", "search train lora.png": "search.jpg"}  # make_screens.py takes the others
WIDTH = 1400  # of a screenshot in README


def write_screens(folder: Path) -> None:
    """The pictures of the browser in README, small enough for a repository."""
    for source, target in SCREENS.items():
        picture = Image.open(folder / source).convert("RGB")
        picture.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
        picture.save(ROOT / "docs" / "ui" / target, quality=72, optimize=True, progressive=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/make_pictures.py")
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "out")
    parser.add_argument("--screens", type=Path)
    options = parser.parse_args()
    if (options.out / "before_after.png").is_file():
        shutil.copyfile(options.out / "before_after.png", ROOT / "docs" / "before_after.png")
    if options.screens:
        write_screens(options.screens)
    for template in TEMPLATES:
        DRAWN[template.slug]().image.save(ROOT / "workflows" / f"{template.title}.jpg", quality=88)


if __name__ == "__main__":
    main()
