"""Prompt files: a text with one prompt per line, or SimpleTuner's user prompt library (JSON)."""

from __future__ import annotations

from pathlib import Path

from ..bounded import from_json, read_text
from ..errors import UserError
from ..names import shown
from .previews import Prompt, from_lines

MOST_BYTES = 1 << 20
LIBRARY_KEYS = {"prompt", "adapter_strength"}
SUFFIXES = (".txt", ".json")


def from_file(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a ``.txt`` or ``.json`` file.

    Raises UserError saying what is wrong in it, without repeating anything of the file: its name may be that of any
    file on this computer.
    """
    name = shown(path.name)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"The prompt file {name} is no .txt and no .json file; name one of these.")
    if not path.is_file():
        raise UserError(f"There is no prompt file {path}; put it into ComfyUI's input folder or give its full path.")
    text = read_text(path, MOST_BYTES, " as prompts")
    try:
        prompts = from_lines(text) if path.suffix.lower() == ".txt" else _library(from_json(text), name)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"The prompt file {name} cannot be read: {error}. It must be JSON.") from error
    if not prompts:
        raise UserError(f"The prompt file {name} holds no prompt; write one per line.")
    return prompts


def _library(values, name: str) -> tuple[Prompt, ...]:
    """``{name: text}`` or ``{name: {"prompt": text, "adapter_strength": number}}``."""
    if not isinstance(values, dict):
        raise UserError(f"The prompt library {name} holds a {type(values).__name__}; it must be names with prompts.")
    return tuple(_entry(key, value, name, number) for number, (key, value) in enumerate(values.items(), 1))


def _entry(key: str, value, name: str, number: int) -> Prompt:
    where = f"In the prompt library {name}, entry {number}"
    entry = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise UserError(f"{where} has no text; give it a text, or a 'prompt'.")
    if entry.keys() - LIBRARY_KEYS:
        raise UserError(f"{where} has keys that do nothing for FLUX.2; leave {', '.join(sorted(LIBRARY_KEYS))} only.")
    strength = entry.get("adapter_strength")
    if strength is not None and (isinstance(strength, bool) or not isinstance(strength, (int, float))):
        raise UserError(f"{where} has an adapter_strength that is no number.")
    try:
        return Prompt(entry["prompt"].strip(), key, None if strength is None else float(strength))
    except UserError:  # its sentence repeats the prompt
        empty = "a prompt is empty" if not entry["prompt"].strip() else "the strength must lie between -10 and 10"
        raise UserError(f"{where}: {empty}.") from None
