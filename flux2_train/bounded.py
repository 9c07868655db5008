"""Files and JSON that others made, read within bounds: regular files only, no more bytes than were announced."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from .errors import UserError
from .names import shown

DEEPEST = 32  # lists and objects inside each other; a job has six
LARGEST_NUMBER = 10**100  # beyond it a number of JSON is no number of anything


def read_bytes(path: Path, most: int, what: str = "") -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    No more is read than the size that the file had when it was opened, so a file that grows, or a link to an endless
    device, cannot fill the memory, and a FIFO cannot make the reader wait. Raises UserError with the file's name, of
    which ``what`` says what it is.
    """
    try:
        _require_regular(os.stat(path), path)
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            state = os.fstat(file.fileno())
            _require_regular(state, path)
            if state.st_size > most:
                raise UserError(f"{shown(path.name)} is {state.st_size} bytes long; at most {most} are read{what}.")
            return file.read(state.st_size)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown(path.name)} cannot be read ({reason(error)}).") from error


def _require_regular(state: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(state.st_mode):
        raise UserError(f"{shown(path.name)} is a folder; a file is needed.")
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"{shown(path.name)} is a pipe, a device or another thing that is no regular file; remove it.")


def read_text(path: Path, most: int, what: str = "") -> str:
    """The UTF-8 text of a regular file of at most ``most`` bytes. Raises as ``read_bytes``, and if it is no UTF-8."""
    try:
        return read_bytes(path, most, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path.name)} is not UTF-8 text; save it as UTF-8.") from error


def from_json(text: str, finite: bool = True) -> Any:
    """The value of a JSON text. Raises ValueError with the reason, which repeats nothing of the text.

    Refused are numbers beyond LARGEST_NUMBER, more than DEEPEST levels and, if values must be ``finite``, also NaN and
    infinities. (Settings refuse these themselves, and name the setting.)
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}, line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    except ValueError:  # Python refuses to make a number of so many digits
        raise ValueError("it holds a number of too many digits") from None
    require_plain(value, finite)
    return value


def require_plain(value: Any, finite: bool = True) -> None:
    """Raise ValueError if a value from JSON or TOML is nested too deeply or holds such a number; see ``from_json``."""
    level = [value]
    for _ in range(DEEPEST + 1):
        for each in level:
            if finite and isinstance(each, float) and not math.isfinite(each):
                raise ValueError(f"it holds {each}, which is no finite number")
            if isinstance(each, int) and abs(each) > LARGEST_NUMBER:
                raise ValueError("it holds a number of too many digits")
        nested = [each for each in level if isinstance(each, dict | list)]
        level = [one for each in nested for one in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def is_file(path: Path) -> bool:
    """Whether a regular file lies at ``path``; False also where that cannot be found out."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # a folder that may not be entered, a name that is too long or has a zero
        return False


def reason(error: Exception) -> str:
    """Why the system refused something, in its own words and without the path."""
    return getattr(error, "strerror", None) or str(error)
