"""Writes the shipped workflows: one description each, as UI JSON for the template browser and as API JSON to queue.

``python scripts/make_workflows.py`` (in the environment of scripts/test) asks a real server for the nodes' inputs,
so the files always fit the nodes; a test checks that the committed ones are what this prints.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from workflow_files import api_format, ui_format  # noqa: E402
from workflow_layout import drawing  # noqa: E402
from workflow_templates import TEMPLATES  # noqa: E402


def render(info: dict) -> dict[str, str]:
    """Every workflow file's text by its path below ``workflows/``."""
    files = {}
    for template in TEMPLATES:
        drawn = drawing(template.build())
        files[f"{template.title}.json"] = json.dumps(ui_format(drawn, info), indent=1) + "\n"
        files[f"api/{template.slug}.json"] = json.dumps(api_format(drawn.nodes, info), indent=1) + "\n"
    return files


def main() -> None:
    from comfy_server import ComfyServer

    os.environ.setdefault("COMFYUI_PATH", str(ROOT / ".comfyui"))
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder)) as server:
        for path, text in render(server.get("/object_info")).items():
            target = ROOT / "workflows" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()
