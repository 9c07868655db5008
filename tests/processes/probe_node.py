"""A custom node pack for the test server: a MODEL that fails when a file says so, and a look into the process.

The MODEL reads the first 16 text tokens alone, which is faster on small images.
"""

import gc
import os
import sys
from pathlib import Path

import comfy.model_management
import folder_paths
import psutil
import torch
from aiohttp import web
from comfy.patcher_extension import WrappersMP
from server import PromptServer

sys.path.append(str(Path(__file__).resolve().parents[1] / "helpers"))  # resolved: this file is a link
import glibc

FAIL = Path(folder_paths.get_output_directory()) / "fail"


def wrapper(executor, x, timestep, context, *args, **kwargs):
    kind = FAIL.read_text() if FAIL.exists() else ""
    if kind == "memory":  # stays full until somebody makes room
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    if kind:
        FAIL.unlink()
        raise RuntimeError(kind)
    return executor(x, timestep, context[:, :16], *args, **kwargs)


class ProbeModel:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "wrap", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def wrap(self, model):
        wrapped = model.clone()
        wrapped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "probe", wrapper)
        return (wrapped,)


def allocated():
    """Bytes of malloc's that somebody holds."""
    info = glibc.malloc_info()
    return info.uordblks + info.hblkhd


def mapped():
    """Bytes of files that are mapped into memory."""
    maps = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    ranges = (fields[0].split("-") for fields in maps if len(fields) == 6 and fields[5].startswith("/"))
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)


@PromptServer.instance.routes.get("/probe")
async def probe(request):
    gc.collect()
    names = [type(each).__name__ for each in gc.get_objects()]
    process = psutil.Process(os.getpid())
    return web.json_response({
        "rss": process.memory_info().rss, "blocks": sys.getallocatedblocks(),
        "allocated": allocated() if glibc.known() else 0, "mapped": mapped() if sys.platform == "linux" else 0,
        "files": process.num_fds(), "threads": process.num_threads(),
        "models": len(comfy.model_management.current_loaded_models),
        "objects": {name: names.count(name) for name in ("Flux2", "ModelPatcher", "Trainer", "Adapters", "AdamW")},
    })  # fmt: skip


NODE_CLASS_MAPPINGS = {"ProbeModel": ProbeModel}
