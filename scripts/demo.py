"""The demo: train and sample the shipped nano workflow in a real ComfyUI server, and lay out what came of it."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import textwrap
import time
from pathlib import Path
from urllib.parse import quote

from comfy_server import ROOT, WITHOUT_API_NODES, ComfyServer, ServerError
from PIL import Image, ImageDraw

WORKFLOW = ROOT / "workflows" / "api" / "flux2_lora_nano.json"
PIXELS = 256  # each picture's longer side in before_after.png


TEMPLATE = "FLUX2 LoRA - quick start, nano, offline"


def with_pictures(prompt: dict) -> dict:
    """The graph, and with it each prompt of Validation painted by the base model and with the LoRA, and saved.

    The nodes that save are called 'base 1', 'lora 1', 'base 2' and so on.
    """
    found = {node["class_type"]: (number, node["inputs"]) for number, node in prompt.items()}
    (load, _), (trainer, _) = found["Flux2Load"], found["Flux2LoraTrainer"]
    shown, graph = found["Flux2Validation"][1], dict(prompt)

    def add(number: str, kind: str, title: str, **inputs) -> list:
        graph[number] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
        return [number, 0]

    applied = add("lora", "Flux2LoraApply", "LoRA Apply", model=[load, 0], lora=[trainer, 0], strength=1.0)
    paint = {"clip": [load, 1], "vae": [load, 2], "steps": 0, "guidance": 0.0, "sampler": "euler"}
    paint |= {name: shown[name] for name in ("width", "height", "seed")}
    for column, text in enumerate(shown["prompts"].splitlines(), 1):
        for row, model in (("base", [load, 0]), ("lora", applied)):
            title = f"{row} {column}"
            painted = add(
                f"paint {title}", "Flux2Sampler", f"FLUX.2 Sampler {title}", model=model, prompt=text, **paint
            )
            add(title, "SaveImage", title, images=painted, filename_prefix=f"flux2/{row}_{column}")
    return graph


class Printer:
    """Prints the server's progress as it comes: nodes as they start, their texts, a line for training."""

    def __init__(self, prompt: dict):
        self.prompt, self.texts = prompt, {}
        self.started = time.monotonic()

    def __call__(self, kind: str, data: dict) -> None:
        if kind == "executing" and data.get("node"):
            self._say(self.prompt[data["node"]]["_meta"]["title"])
        elif kind == "text":
            shown = self.texts.get(data["node"], "").splitlines()
            self.texts[data["node"]] = data["text"]
            new = [line for line in data["text"].splitlines() if line not in shown]
            if new:
                self._say("  " + "; ".join(new))

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)

    def text_of(self, class_type: str) -> str:
        """The last text that the (first) node of a type showed."""
        return next(text for node, text in self.texts.items() if self.prompt[node]["class_type"] == class_type)


def pictures(prompt: dict, history: dict, output: Path) -> dict[str, Image.Image]:
    """Saved pictures by the title of the node that saved them."""
    found = {}
    for node, result in history["outputs"].items():
        for image in result.get("images", []):
            if image["type"] == "output":
                found[prompt[node]["_meta"]["title"]] = Image.open(output / image["subfolder"] / image["filename"])
    return found


def before_after(images: dict[str, Image.Image], prompts: dict[str, str]) -> Image.Image:
    """Base above, LoRA below, a column per prompt. Titles read 'base 1', 'lora 1', 'base 2', ..."""
    columns = sorted({title.split()[-1] for title in images if title.startswith("base ")})
    gap, head = 12, 46
    width, height = PIXELS + gap, PIXELS + head
    sheet = Image.new("RGB", (gap + width * len(columns), gap + 2 * height), "white")
    draw = ImageDraw.Draw(sheet)
    for x, column in enumerate(columns):
        for y, row in enumerate(("base", "lora")):
            picture = images[f"{row} {column}"]
            scale = PIXELS / max(picture.size)
            picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.LANCZOS)
            left, top = gap + x * width, gap + y * height
            label = f"{'base model' if row == 'base' else 'with LoRA'}\n{textwrap.fill(prompts[column], 42)}"
            draw.multiline_text((left, top), label, fill="black", font_size=11)
            sheet.paste(picture, (left, top + head))
    return sheet


def prompts_of(prompt: dict) -> dict[str, str]:
    """The text each numbered column was painted from."""
    samplers = (node for node in prompt.values() if node["class_type"] == "Flux2Sampler")
    return {n["_meta"]["title"].split()[-1]: n["inputs"]["prompt"] for n in samplers}


def write(out: Path, server: ComfyServer, prompt: dict, history: dict, printer: Printer) -> list[Path]:
    """Lay out the four results in ``out``."""
    output = server.folder / "output"
    file_name = re.search(r"^(\S+\.safetensors):", printer.text_of("Flux2LoraTrainer"), re.MULTILINE)[1]
    run = output / "flux2_train" / Path(file_name).stem
    shutil.copyfile(server.folder / "models" / "loras" / file_name, out / "lora.safetensors")
    shutil.copyfile(run / "loss.png", out / "loss.png")
    before_after(pictures(prompt, history, output), prompts_of(prompt)).save(out / "before_after.png")
    report = json.loads((run / "report.json").read_text())
    report["comfyui_version"] = server.get("/system_stats")["system"]["comfyui_version"]
    report["tensors_that_fit"] = re.search(r"\((.*) tensors", printer.text_of("Flux2LoraApply"))[1]
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return [out / name for name in ("lora.safetensors", "before_after.png", "loss.png", "report.json")]


def quick_start(server: ComfyServer) -> str:
    """The address that opens the shipped workflow in the browser, also on somebody's first visit."""
    server.post("/settings", {"Comfy.TutorialCompleted": True})  # else a tour covers it
    return f"{server.url}/?flux2_template={quote(TEMPLATE)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--serve", action="store_true")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    prompt = with_pictures(json.loads(WORKFLOW.read_text()))
    for node in prompt.values():
        if node["class_type"] == "Flux2LoraTrainer":
            node["inputs"]["resume"] = "new"  # each demo trains, though the folder still has the last one's run
    folder = ROOT / ".cache" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    print("Starting ComfyUI ...", flush=True)
    with ComfyServer(folder, WITHOUT_API_NODES) as server:
        printer = Printer(prompt)
        history = server.run(prompt, printer)
        written = write(out, server, prompt, history, printer)
        print("\nWrote:\n" + "\n".join(f"  {path}" for path in written))
        if options.serve:
            print(f"\nThe quick start, ready to run (Ctrl+C ends the server):\n  {quick_start(server)}", flush=True)
            server.process.wait()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ServerError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
