"""Prompt files: a text with one prompt per line, or SimpleTuner's user prompt library (JSON)."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import UserError
from .previews import Prompt, from_lines

MOST_BYTES = 1 << 20
LIBRARY_KEYS = {"prompt", "adapter_strength"}


def from_file(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a ``.txt`` or ``.json`` file. Raises UserError saying what is wrong in it."""
    if path.suffix.lower() not in (".txt", ".json"):
        raise UserError(f"The prompt file {path.name} is no .txt and no .json file; name one of these.")
    if not path.is_file():
        raise UserError(f"There is no prompt file {path}; put it into ComfyUI's input folder or give its full path.")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"The prompt file {path.name} has {path.stat().st_size} bytes; at most {MOST_BYTES} are read.")
    try:
        text = path.read_text("utf-8-sig")
        prompts = from_lines(text) if path.suffix.lower() == ".txt" else _library(json.loads(text), path.name)
    except (UnicodeDecodeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"The prompt file {path.name} cannot be read: {error}. It must be UTF-8.") from error
    if not prompts:
        raise UserError(f"The prompt file {path.name} holds no prompt; write one per line.")
    return prompts


def _library(values, name: str) -> tuple[Prompt, ...]:
    """``{name: text}`` or ``{name: {"prompt": text, "adapter_strength": number}}``."""
    if not isinstance(values, dict):
        raise UserError(f"The prompt library {name} holds a {type(values).__name__}; it must be names with prompts.")
    return tuple(_entry(key, value, name) for key, value in values.items())


def _entry(key: str, value, name: str) -> Prompt:
    entry = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise UserError(f"In the prompt library {name}, {key!r} has no text; give it a text, or a 'prompt'.")
    unknown = sorted(entry.keys() - LIBRARY_KEYS)
    if unknown:
        raise UserError(f"In the prompt library {name}, {key!r} has {', '.join(unknown)}, which does nothing for "
                        f"FLUX.2; leave {', '.join(sorted(LIBRARY_KEYS))} only.")  # fmt: skip
    strength = entry.get("adapter_strength")
    if strength is not None and (isinstance(strength, bool) or not isinstance(strength, (int, float))):
        raise UserError(f"In the prompt library {name}, the adapter_strength of {key!r} is {strength!r}, no number.")
    return Prompt(entry["prompt"].strip(), key, None if strength is None else float(strength))
