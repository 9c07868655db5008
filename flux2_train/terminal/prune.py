"""``cache prune``: removes what no data set uses from the caches on disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import cache_command
from .options import command, start


def add(commands) -> None:
    """Add the command to the parser."""
    group = commands.add_parser("cache", help="the caches on disk").add_subparsers(metavar="WHAT", required=True)
    cache_command.add_to(group)
    prune = command(group, "prune", run, "remove entries that no data set uses, and print sizes")
    prune.add_argument("--folder", type=Path, help="the cache (default: those in ComfyUI's user and output folders)")
    prune.add_argument("--older-than", type=float, metavar="DAYS", help="also forget data sets not used for so long")


def run(arguments: argparse.Namespace) -> None:
    """Prune every cache that exists."""
    start(arguments)
    from ..data.store import Store
    from ..host.loading.files import CACHE_PLACES, cache_folder

    for place in [arguments.folder] if arguments.folder else map(cache_folder, CACHE_PLACES):
        if not (place / "index.sqlite").is_file():
            print(f"{place}: no cache")
            continue
        sizes = Store(place).prune(arguments.older_than)
        print(f"{place}: {sizes.entries} entries, {sizes.size / 1e6:.1f} MB; removed {sizes.unused_entries}, "
              f"{sizes.unused_size / 1e6:.1f} MB")  # fmt: skip
