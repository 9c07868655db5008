"""The engine from a terminal: ``python -m flux2_train flavours`` lists the flavours and which files are there."""

from __future__ import annotations

import sys

from .errors import UserError
from .flavours import FLAVOURS
from .host.bootstrap import import_comfyui


def list_flavours() -> None:
    """Print every flavour's files and where each lies, or that it is missing."""
    from .host.files import find

    for row in FLAVOURS.values():
        print(row.name)
        for file in (*row.transformer_files("auto"), *row.text_encoders, *row.vaes):
            where = find(file) or ("generated on first use" if file.generate else "missing")
            print(f"  {file.folder}/{file.name}: {where}")


def main(arguments: list[str]) -> int:
    if arguments != ["flavours"]:
        print(__doc__)
        return 0 if arguments in ([], ["--help"]) else 2
    try:
        import_comfyui()
        list_flavours()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
