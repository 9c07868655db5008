"""``flavours``: which model files each flavour needs, and where they are."""

from __future__ import annotations

import argparse

from ..flavours import FLAVOURS
from .options import command, start_folders


def add(commands) -> None:
    """Add the command to the parser."""
    command(commands, "flavours", run, "list every flavour's files and where each lies, or that it is missing")


def run(arguments: argparse.Namespace) -> None:
    """Print every flavour's files and where each lies, or that it is missing."""
    start_folders(arguments)
    from ..host.loading.files import find

    for row in FLAVOURS.values():
        print(row.name)
        for file in (*row.transformer_files("auto"), *row.text_encoders, *row.vaes):
            where = find(file) or ("generated on first use" if file.generate else "missing")
            print(f"  {file.folder}/{file.name}: {where}")
