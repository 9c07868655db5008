"""Loads a transformer and a text encoder, caches and trains, in a process of its own, and prints its memory as JSON.

python load_probe.py FOLDER FULL PRECISION... makes files, 2 GB each where ``FULL`` is 1 and 1 GB where it is 0, of true
architecture with random weights: FLUX.2 with fewer and narrower blocks, a Qwen3 with fewer and narrower layers, and
FLUX.2's autoencoder. It loads them, caches and trains; where ``FULL`` is 0 the transformer then reads 16 text tokens.
After that it makes a transformer and a text encoder in two files, of 2 or 0.4 GB each, and quantises them in each
precision, in memory and by way of a file that is kept. Each of these is done by a process of its own, forked from the
one that has imported ComfyUI, and the files are removed at the end.
"""

import ctypes
import gc
import json
import math
import os
import sys
import threading
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from flux2_train.host.system.bootstrap import import_comfyui  # noqa: E402

import_comfyui("--cpu")

import comfy.model_management  # noqa: E402
import comfy.ops  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from comfy.quant_ops import QuantizedTensor  # noqa: E402
from comfy.text_encoders.llama import Qwen3_4B  # noqa: E402
from support import with_few_words  # noqa: E402

from bench.shapes import flux2_shapes  # noqa: E402
from flux2_train.adapters import stream  # noqa: E402
from flux2_train.data import cache  # noqa: E402
from flux2_train.data.folder import read_folder  # noqa: E402
from flux2_train.data.store import Store  # noqa: E402
from flux2_train.flavours import FLAVOURS  # noqa: E402
from flux2_train.host.encoding import encode  # noqa: E402
from flux2_train.host.loading import load  # noqa: E402
from flux2_train.host.system import memory  # noqa: E402
from flux2_train.runs.prepare import new_trainer  # noqa: E402
from flux2_train.settings.dataset_folder import DatasetSettings  # noqa: E402
from flux2_train.settings.training import TrainingSettings  # noqa: E402

WIDTH = 2560  # of the text encoder; the transformer reads three of its layers
QWEN = {"hidden_size": WIDTH, "num_hidden_layers": 28}
VAE = {"embed_dim": 32, "ddconfig": {
    "double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0, "batch_norm_latent": True,
}}  # fmt: skip


def weights(shapes):
    """Random matrices that keep numbers in bounds, ones for the rest; one at a time, of a few values drawn once."""
    drawn = torch.randn(1 << 20)
    for name, shape in shapes:
        size = math.prod(shape)
        if len(shape) > 1:
            tiled = (drawn * (size / shape[0]) ** -0.5).bfloat16().repeat(-(-size // len(drawn)))
            yield name, tiled[:size].view(shape)
        else:
            yield name, torch.ones(shape, dtype=torch.bfloat16)


def write(path, shapes):
    shapes = list(shapes)
    stream.write(path, weights(shapes), [name for name, _ in shapes], {})


def transformer(hidden, double, single):
    return flux2_shapes(hidden, double, single, 3 * WIDTH)


def text_encoder(full):
    """Sizes of its layers; the words alone take 0.8 GB."""
    wide = {"num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 2048}
    return {
        **QWEN,
        **(wide if full else {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 512}),
    }


def write_all(folder: Path, full: bool) -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(**VAE).state_dict()
        text = Qwen3_4B(text_encoder(full), torch.bfloat16, None, comfy.ops.disable_weight_init).state_dict()
    write(folder / "transformer.safetensors", transformer(*((1536, 14, 2) if full else (1024, 17, 1))))
    for name, found in (("text", text), ("vae", vae)):
        write(folder / f"{name}.safetensors", [(key, tuple(value.shape)) for key, value in found.items()])


def load_all(base: Path, text: Path, vae: Path, full: bool) -> tuple:
    row = replace(FLAVOURS["nano"], text_encoder_config=text_encoder(full))
    return load.load_transformer(base), load.load_text_encoder(text, row), load.load_vae(vae, FLAVOURS["klein-4b"])


def run(folder: Path, full: bool) -> None:
    paths = [folder / f"{name}.safetensors" for name in ("transformer", "text", "vae")]
    load_all(*paths, full)  # so that the pages of libraries which loading uses are not counted with it
    gc.collect()
    tell = partial(report, resident("VmRSS"))
    model, clip, autoencoder = load_all(*paths, full)
    loaded = tell()
    dataset = read_folder(DatasetSettings(ROOT / "datasets" / "robot", resolution=64))
    dataset = replace(dataset, items=dataset.items[:1])
    embeds, _ = cache.cache_embeds(dataset, encode.TextEncoder(clip), Store(folder / "cache"))
    encoded = tell()
    memory.unload(clip.patcher)
    latents, _ = cache.cache_latents(dataset, encode.ImageEncoder(autoencoder), Store(folder / "cache"))
    memory.unload(autoencoder.patcher)
    cached = tell()
    model = model if full else with_few_words(model)
    trainer = new_trainer(model, embeds, latents, TrainingSettings(steps=1, rank=4, validation_items=0))
    losses = [event.loss for event in trainer.run() if hasattr(event, "loss")]
    sizes = [path.stat().st_size for path in paths[:2]]
    print(json.dumps({"files": sizes, "loaded": loaded, "encoded": encoded, "cached": cached, "trained": tell(),
                      "losses": losses}))  # fmt: skip


def write_quantisable(folder: Path, full: bool) -> None:
    write(folder / "transformer.safetensors", transformer(*((1536, 14, 2) if full else (1536, 1, 2))))
    with torch.device("meta"):
        text = Qwen3_4B(quantisable(full), torch.bfloat16, None, comfy.ops.disable_weight_init).state_dict()
    shapes = [(key, tuple(value.shape)) for key, value in text.items()]
    for number in (1, 2):
        write(folder / f"text-{number:05d}-of-00002.safetensors", shapes[number - 1 :: 2])


def quantisable(full: bool) -> dict[str, int]:
    """Sizes of a text encoder that is nearly all matrices."""
    layers = 16 if full else 1
    return {**text_encoder(True), "vocab_size": 256, "num_hidden_layers": layers, "intermediate_size": 8192}


def quantise_all(folder: Path, full: bool, precision: str) -> None:
    """Prints a line for each model: bytes of the result, of its widest layer in the file, and the most on the way."""
    row = replace(FLAVOURS["nano"], text_encoder_config=quantisable(full))
    for kind in ("diffusion_models", "text_encoders"):
        folder_paths.folder_names_and_paths[kind][0][:] = [str(folder)]  # where quantised copies are kept
    for keep in (False, True):
        model = load.load_transformer(folder / "transformer.safetensors", precision, keep=keep)
        clip = load.load_text_encoder(folder / "text-00001-of-00002.safetensors", row, precision, keep=keep)
        for kind, patcher in (("transformer", model), ("text encoder", clip.patcher)):
            print(json.dumps({"precision": precision, "kind": kind, "on disk": keep, **quantising(patcher)}))
    for path in (folder / "flux2_train_quantised").iterdir():
        path.unlink()


def quantising(patcher) -> dict[str, int]:
    matrices = [weight for weight in patcher.model.parameters() if isinstance(weight, QuantizedTensor)]
    size, _ = patcher.model_size(), (gc.collect(), ctypes.CDLL(None).malloc_trim(0))
    before = most = resident("RssAnon")
    done = threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.001):
            most = max(most, resident("RssAnon"))

    watching = threading.Thread(target=watch)
    watching.start()
    comfy.model_management.load_models_gpu([patcher])
    done.set()
    watching.join()
    after = resident("RssAnon")
    memory.unload(patcher)
    stored, layer = sum(weight.nbytes for weight in matrices), max(2 * weight.numel() for weight in matrices)
    rises = {"rise": most - before, "kept": after - before, "left": resident("RssAnon") - before}
    return {"result": size, "matrices": stored, "layer": layer, **rises}


def resident(kind: str) -> int:
    """Bytes of VmRSS (now), VmHWM (most so far) or RssAnon (of it, not of mapped files)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def report(before: int) -> dict[str, int]:
    return {"now": resident("VmRSS"), "peak": resident("VmHWM"), "anonymous": resident("RssAnon"), "before": before}


def forked(work, *arguments) -> None:
    """``work(*arguments)`` in a process that begins with what this one holds, as nodes run."""
    pid = os.fork()
    if pid:
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            sys.exit(1)
        return
    try:
        with torch.inference_mode():
            work(*arguments)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main(folder: Path, full: bool, precisions: list[str]) -> None:
    try:
        forked(write_all, folder, full)
        forked(run, folder, full)
        emptied(folder)
        forked(write_quantisable, folder, full)
        for precision in precisions:
            forked(quantise_all, folder, full, precision)
    finally:
        emptied(folder)


def emptied(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2] == "1", sys.argv[3:])
