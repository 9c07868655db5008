"""Finding and importing ComfyUI when we do not run inside it: in tests, the terminal and benches.

Our folder ``nodes/`` has the same name as ComfyUI's module ``nodes.py``, which core itself imports. So ComfyUI's folder
must come before ours on ``sys.path``.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from ...errors import UserError
from . import starting

ROOT = Path(__file__).resolve().parents[3]


def find_comfyui() -> Path:
    """ComfyUI's folder: ``$COMFYUI_PATH``, else the one this checkout sits in, else ``.comfyui``."""
    chosen = os.environ.get("COMFYUI_PATH")
    candidates = [Path(chosen)] if chosen else [ROOT.parent.parent, ROOT / ".comfyui"]
    for path in candidates:
        if (path / "comfyui_version.py").is_file():
            return path.resolve()
    problem = f"COMFYUI_PATH={chosen} holds no ComfyUI" if chosen else "No ComfyUI was found"
    raise UserError(f"{problem}; set COMFYUI_PATH to a ComfyUI folder or run scripts/test once to fetch one.")


def import_comfyui(*arguments: str) -> Path:
    """Put ComfyUI first on ``sys.path`` and let it read ``arguments`` as its command line. Returns its folder.

    Without a GPU ``--cpu`` is added, because ComfyUI does not detect that by itself. Its memory management is started
    as its main.py does it (``starting``).
    """
    if "comfy.model_management" in sys.modules:
        return find_comfyui()
    path = prepare(*arguments)
    import torch
    from comfy.cli_args import args

    args.cpu = args.cpu or "--cpu" in arguments or not _has_gpu(torch)
    import utils.extra_config  # core's; before nodes: that puts comfy/, which has a utils.py, first (up to 0.24.0)

    import nodes  # noqa: F401  core's, imported now so that this name cannot mean our folder later

    starting.after_import()
    _apply_folders(path, utils.extra_config.load_extra_path_config)
    return path


def prepare(*arguments: str) -> Path:
    """The part of ``import_comfyui`` that must run before torch is imported, for code that imports torch earlier.

    Only the first call's ``arguments`` count. Returns ComfyUI's folder.
    """
    path = find_comfyui()
    if "comfy.cli_args" not in sys.modules:
        _read_command_line(path, arguments)
        starting.before_torch()
    return path


def import_folders(*arguments: str) -> Path:
    """Import only ComfyUI's ``folder_paths``, with the folders that ``arguments`` name; torch is not imported.

    For commands that only look up files and compute nothing. Returns ComfyUI's folder.
    """
    path = find_comfyui()
    if "folder_paths" in sys.modules:
        return path
    if "comfy.cli_args" not in sys.modules:
        _read_command_line(path, arguments)
    import utils.extra_config

    _apply_folders(path, utils.extra_config.load_extra_path_config)
    return path


def _read_command_line(path: Path, arguments: Sequence[str]) -> None:
    """Put ComfyUI's folder first on ``sys.path`` and let it read its command line."""
    sys.path[:] = [str(path)] + [p for p in sys.path if Path(p or ".").resolve() != path]
    import comfy.options

    own_argv, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = own_argv


def _has_gpu(torch: ModuleType) -> bool:
    if hasattr(torch, "accelerator"):  # from 2.6 on
        return torch.accelerator.is_available()
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _apply_folders(path: Path, load_extra: Callable[[str], None]) -> None:
    """Apply the folders from ComfyUI's command line and extra_model_paths.yaml, as its main.py does."""
    import folder_paths
    from comfy.cli_args import args

    own = path / "extra_model_paths.yaml"
    for config in (*([str(own)] if own.is_file() else []), *itertools.chain(*args.extra_model_paths_config or ())):
        load_extra(config)
    for kind in ("output", "input", "user"):
        folder = getattr(args, f"{kind}_directory")
        if folder:
            getattr(folder_paths, f"set_{kind}_directory")(os.path.abspath(folder))
    for kind in ("diffusion_models", "text_encoders", "vae", "loras"):  # where core's own nodes save models
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.get_output_directory(), kind))
