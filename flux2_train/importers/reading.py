"""Reading files that others wrote: bounded in size and depth, and never more than plain values.

Nothing in a file is imported or run. YAML is read by PyYAML's safe loader, which knows plain values only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..bounded import read_bytes
from ..errors import UserError

MAX_BYTES = 10 << 20
MAX_YAML_BYTES = 1 << 20  # PyYAML takes about a second for 100 KB; a configuration has a few KB
MAX_DEPTH, MAX_LEAVES = 40, 20_000
MAX_NESTED = 200  # signs that nest, some of which may stand inside texts
NESTED = re.compile(r"(?:[-?] ){200}|(?<![\w.-])(?:[\w-]+\.){200}")
JSON, YAML, TOML = (".json", ".jsonc"), (".yaml", ".yml"), (".toml",)
COMMAND = (".sh", ".bash", ".bat", ".cmd", ".ps1", ".txt")


def read(path: Path) -> Any:
    """The plain values in a JSON, YAML or TOML file, or the text of a file with a command line.

    Raises UserError that names the file and what is wrong with it.
    """
    text = _text(path)
    suffix = path.suffix.lower()
    if suffix in COMMAND:
        return text
    if suffix not in JSON + YAML + TOML:
        raise UserError(f"{path.name} ends in {suffix!r}; what can be read ends in {', '.join(known_endings())}.")
    if suffix not in JSON and _is_deep(text):
        raise UserError(f"{path.name} is nested too deeply; {MAX_DEPTH} levels can be read.")
    parse = _json if suffix in JSON else _yaml if suffix in YAML else _toml
    try:
        values = parse(text, path)
    except RecursionError:
        raise UserError(f"{path.name} is nested too deeply; {MAX_DEPTH} levels can be read.") from None
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(f"{path.name} cannot be read: {error}.") from error
    leaves(values, path.name)
    return values


def known_endings() -> tuple[str, ...]:
    """The endings of files that can be read."""
    return JSON + YAML + TOML + COMMAND


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"There is no file {path}; give the full path of a configuration file.")
    most = MAX_YAML_BYTES if path.suffix.lower() in YAML else MAX_BYTES
    if path.stat().st_size > most:
        raise UserError(f"{path.name} has {path.stat().st_size} bytes; at most {most} of its kind are read.")
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is no text in UTF-8: {error}.") from error


def _is_deep(text: str) -> bool:
    """Whether brackets, dashes or dotted names nest so deeply that the readers of YAML and TOML would take minutes."""
    depth = deepest = 0
    for sign in re.findall(r"[\[{\]}]", text):
        depth = max(0, depth + (1 if sign in "[{" else -1))
        deepest = max(deepest, depth)
    return deepest > MAX_NESTED or bool(NESTED.search(text))


def _json(text: str, path: Path) -> Any:
    return json.loads(text)


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise UserError(f"{path.name}: PyYAML is not installed; install it, or write the file as JSON.") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} cannot be read: {' '.join(str(error).split())}.") from error


def _toml(text: str, path: Path) -> Any:
    try:
        import tomllib
    except ImportError:
        try:
            import tomli as tomllib
        except ImportError:
            raise UserError(
                f"{path.name}: this Python cannot read TOML (3.11 can, or install tomli); write the file as JSON."
            ) from None
    return tomllib.loads(text)


def leaves(values: Any, name: str = "The file") -> dict[str, Any]:
    """Every value by its whole key, such as ``datasets[0].folder_path``. A list of plain values is one value.

    Raises UserError for more than ``MAX_LEAVES`` of them or ``MAX_DEPTH`` levels (YAML can repeat and nest by names).
    """
    found: dict[str, Any] = {}
    for key, value in _walk(values, "", 0, name):
        found[key] = value
        if len(found) > MAX_LEAVES:
            raise UserError(f"{name} holds more than {MAX_LEAVES} values; that is no configuration.")
    return found


def _walk(value: Any, key: str, depth: int, name: str) -> Iterator[tuple[str, Any]]:
    if depth > MAX_DEPTH:
        raise UserError(f"{name} is nested too deeply; {MAX_DEPTH} levels can be read.")
    if isinstance(value, dict) and value:
        for inner, each in value.items():
            yield from _walk(each, f"{key}.{inner}" if key else str(inner), depth + 1, name)
    elif isinstance(value, list) and any(isinstance(each, (dict, list)) for each in value):
        for number, each in enumerate(value):
            yield from _walk(each, f"{key}[{number}]", depth + 1, name)
    elif key:
        yield key, value


def beside(path: Path, named: Any) -> Path | None:
    """The file that a configuration names, if it lies in the configuration's own folder or below it, else None.

    Files elsewhere are never opened because a file says so.
    """
    if not isinstance(named, str) or not named.strip():
        return None
    folder = path.resolve().parent
    for place in (folder / named, folder / Path(named.replace("\\", "/")).name):
        found = place.resolve()
        if found.is_relative_to(folder) and found.is_file() and found != path.resolve():
            return found
    return None
