"""Loads a transformer and a text encoder, caches and trains, in a process of its own, and prints its memory as JSON.

python load_probe.py FOLDER FULL: ``FULL`` is 1 for files of 2 GB each and 0 for 1 GB. The files are of true architecture
with random weights: klein-4b's widths with fewer blocks, a Qwen3 of its tokenizer with narrower layers, and FLUX.2's VAE.
"""

import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from flux2_train.host.bootstrap import import_comfyui  # noqa: E402

import_comfyui("--cpu")

import comfy.ops  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from comfy.text_encoders.llama import Qwen3_4B  # noqa: E402
from memory_probe import resident  # noqa: E402
from support import flux2_shapes  # noqa: E402

from flux2_train.adapters import stream  # noqa: E402
from flux2_train.config import TrainConfig  # noqa: E402
from flux2_train.data import cache  # noqa: E402
from flux2_train.data.folder import read_folder  # noqa: E402
from flux2_train.data.request import Request  # noqa: E402
from flux2_train.data.store import Store  # noqa: E402
from flux2_train.flavours import FLAVOURS  # noqa: E402
from flux2_train.host import encode, load  # noqa: E402
from flux2_train.run.trainer import Trainer  # noqa: E402

WIDTH = 2560  # of the text encoder; the transformer reads three of its layers
QWEN = {"hidden_size": WIDTH, "num_hidden_layers": 28, "num_attention_heads": 8, "num_key_value_heads": 2}
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
    return path


def files(folder, full):
    """(transformer, text encoder, VAE, the text encoder's flavour)."""
    qwen = {**QWEN, "intermediate_size": 2048} if full else {**QWEN, "num_attention_heads": 2, "num_key_value_heads": 1,
                                                             "intermediate_size": 320}  # fmt: skip
    with torch.device("meta"):
        vae = AutoencoderKL(**VAE).state_dict()
        text = Qwen3_4B(qwen, torch.bfloat16, None, comfy.ops.disable_weight_init).state_dict()
    shapes = {name: {key: tuple(value.shape) for key, value in found.items()}.items()
              for name, found in (("text", text), ("vae", vae))}  # fmt: skip
    transformer = flux2_shapes(3072, 1, 5 if full else 1, 3 * WIDTH)
    paths = (write(folder / f"{name}.safetensors", found)
             for name, found in (("transformer", transformer), *shapes.items()))  # fmt: skip
    return *paths, replace(FLAVOURS["nano"], text_encoder_config=qwen)


def main(folder: Path, full: bool) -> None:
    transformer, text, vae, row = files(folder, full)
    Path("/proc/self/clear_refs").write_text("5")  # what writing the files took does not count
    tell = partial(report, before=resident("VmRSS"))
    model, clip = load.load_transformer(transformer), load.load_text_encoder(text, row)
    autoencoder = load.load_vae(vae, FLAVOURS["klein-4b"])
    loaded = tell()
    dataset = read_folder(Request(ROOT / "datasets" / "robot", 64))
    dataset = replace(dataset, items=dataset.items[:1])
    embeds, _ = cache.cache_embeds(dataset, encode.TextEncoder(clip), Store(folder / "cache"))
    encoded = tell()
    encode.unload(clip.patcher)
    latents, _ = cache.cache_latents(dataset, encode.ImageEncoder(autoencoder), Store(folder / "cache"))
    encode.unload(autoencoder.patcher)
    cached = tell()
    trainer = Trainer(model, embeds, latents, TrainConfig(steps=1, rank=4))
    losses = [event.loss for event in trainer.run() if hasattr(event, "loss")]
    sizes = [path.stat().st_size for path in (transformer, text)]
    print(json.dumps({"files": sizes, "loaded": loaded, "encoded": encoded, "cached": cached, "trained": tell(),
                      "losses": losses}))  # fmt: skip


def report(before: int) -> dict[str, int]:
    return {"now": resident("VmRSS"), "peak": resident("VmHWM"), "anonymous": resident("RssAnon"), "before": before}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.inference_mode():
        main(Path(sys.argv[1]), sys.argv[2] == "1")
