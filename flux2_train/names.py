"""Names of files: which may be given to a new file, and how a foreign one is shown to a person."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PureWindowsPath

MOST_BYTES = 200  # of a name without its suffix; file systems take 255, and numbers, steps and suffixes come behind it
LONGEST = 120  # characters of a foreign name that are shown
_FORBIDDEN = set('\\/:*?"<>|')
# Windows opens a device for these, whatever the suffix: https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)
_JOINERS = "\u200c\u200d"  # invisible, but part of the spelling of Persian and of emoji
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (which may turn the direction), surrogates, separators


def is_invisible(character: str) -> bool:
    """Whether a character controls a terminal, breaks the line, or changes how the text around it is shown."""
    return unicodedata.category(character) in _INVISIBLE and character not in _JOINERS


def problem(name: str, most: int = MOST_BYTES) -> str:
    """Why ``name`` cannot be a file's name on every operating system, as a clause; empty if it can."""
    if not name.strip(". "):
        return "it has no letters"
    if any(map(is_invisible, name)):
        return "it has control characters or invisible ones"
    forbidden = sorted(_FORBIDDEN & set(name))
    if forbidden:
        return f"it has {' '.join(forbidden)}"
    if name.endswith((".", " ")):
        return "it ends with a dot or a space"
    if _DEVICE.fullmatch(name):
        return "Windows keeps it for a device"
    size = len(name.encode())
    return f"it has {size} bytes, at most {most} leave room for suffixes" if size > most else ""


def same_file(one: str, other: str) -> bool:
    """Whether two names may be those of one file. One that is named without a folder, as in a pack, may lie in any."""
    if one == other:
        return True
    bare = (PureWindowsPath(one).name, PureWindowsPath(other).name)
    return bare[0] == bare[1] != "" and (one == bare[0] or other == bare[1])


def counted(number: int, one: str, many: str = "") -> str:
    """The number with its noun (and verb): ``1 image is``, ``2 images are``; by default ``many`` gets an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def escaped(text: str) -> str:
    """The text in one line that controls nothing: invisible characters as escapes, ``?`` for what is no Unicode."""
    return "".join(_escaped(character) if is_invisible(character) else character for character in text)


def shown(text: str, most: int = LONGEST) -> str:
    """A foreign text in one line, as ``escaped``; the middle of more than ``most`` characters is left out."""
    if len(text) > most:
        half = (most - 3) // 2
        text = f"{text[: most - 3 - half]}...{text[-half:]}"
    return escaped(text)


def _escaped(character: str) -> str:
    if "\ud800" <= character <= "\udfff":
        return "?"
    return character.encode("unicode_escape").decode()
