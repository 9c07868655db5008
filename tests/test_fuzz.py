"""Whatever a foreign file or request holds, it ends in success or a UserError, in no time and within bounds.

2,000 examples each with --all, 20 with --quick, else 100. ``figures`` prints the slowest and the largest of each.
"""

import asyncio
import io
import json
import string
import sys
import tempfile
import time
import unicodedata
from collections import defaultdict
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from flux2_train import safetensors_header
from flux2_train.adapters import read
from flux2_train.adapters.names import sizes_of
from flux2_train.data import captions
from flux2_train.data.images import examine, open_upright, to_rgb
from flux2_train.errors import LONGEST, UserError
from flux2_train.flavours import FLAVOURS
from flux2_train.settings import job
from flux2_train.settings.prompts import from_file

SECONDS, BYTES = 2.0, 256e6
SIZES = sizes_of(*FLAVOURS["nano"].sizes)
FIGURES: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)


def is_shown(character: str) -> bool:
    """No control character, no part of one, no end of a line, and of what is invisible only what joins letters."""
    return unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} or character in "\u200c\u200d"


def ends_well(what: str, work) -> object:
    """What ``work`` returns, or the UserError it raises; either within SECONDS and BYTES."""
    before, began, refused = psutil.Process().memory_info().rss, time.process_time(), False
    try:
        result = work()
    except UserError as error:
        result, refused = error, True
        assert len(str(error)) <= LONGEST and "object at 0x" not in str(error)
        assert all(map(is_shown, str(error).replace("\n", "")))
    seconds, grown = time.process_time() - began, psutil.Process().memory_info().rss - before
    FIGURES[what].append((seconds, grown, refused))
    assert seconds < SECONDS and grown < BYTES
    return result


@pytest.fixture(scope="module", autouse=True)
def figures():
    yield
    for what, rows in FIGURES.items():
        seconds, grown, refused = zip(*rows, strict=True)
        print(
            f"\n{what}: {len(rows)} examples, {sum(refused)} refused, at most {max(seconds):.2f} s and "
            f"{max(grown) / 1e6:.0f} MB",
            file=sys.__stdout__,
        )


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "..", "/etc", "\x00", "\u202e", "9" * 400]),
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


def mangled(data: bytes):
    """The bytes with some of them changed, cut off or repeated."""
    return st.builds(
        lambda at, new, end, more: (data[:at] + new + data[at + len(new) :])[: max(0, len(data) - end)] + more,
        st.integers(0, len(data)),
        st.binary(max_size=9),
        st.sampled_from([0, 0, 0, 1, 7, len(data) // 2]),
        st.binary(max_size=5),
    )


# safetensors headers

entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "U8", "F4", "X", ""]) | leaves,
        "shape": st.lists(st.integers(-2, 1 << 70), max_size=4) | values,
        "data_offsets": st.lists(st.integers(-2, 1 << 70), min_size=2, max_size=2) | values,
    }
)
headers = st.dictionaries(st.text(max_size=30), entries | values, max_size=5)


@given(headers, st.binary(max_size=40), st.integers(0, 3))
def test_safetensors_headers(place, header, data, room):
    text = json.dumps(header).encode()
    path = place / "a.safetensors"
    path.write_bytes((len(text) + room).to_bytes(8, "little") + text + b" " * room + data)

    def work():
        found = safetensors_header.read(path)
        with safetensors_header.opened(path) as file:
            return {name: file.get_tensor(name) for name in found.tensors}

    ends_well("safetensors headers", work)


WHOLE = save({"diffusion_model.single_blocks.0.linear2.lora_A.weight": torch.zeros(2, 8)}, {"a": "b"})


@given(mangled(WHOLE))
def test_mangled_safetensors(place, data):
    (place / "a.safetensors").write_bytes(data)
    ends_well("mangled safetensors", lambda: read.read(read.load(place / "a.safetensors"), SIZES, "nano"))


# LoRA key sets

STEMS = [
    f"{prefix}{name}" for name in list(SIZES)[:6] for prefix in ("diffusion_model.", "transformer.", "lora_unet_", "")
]
ENDS = [
    "lora_A.weight",
    "lora_B.weight",
    "lora_down.weight",
    "lora_up.weight",
    "alpha",
    "dora_scale",
    "diff",
    "diff_b",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "lokr_w1",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_w2",
    "oft_blocks",
    "oft_R.weight",
    "rescale",
    "magnitude",
    "lora_magnitude_vector",
    "lora_A.default.weight",
]
sides = st.sampled_from([0, 1, 2, 3, 4, 8, 96, 128, 192, 384, 512])
tensors = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    st.lists(sides, max_size=3).filter(lambda s: len(s) < 3 or max(s) < 100),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.bool]),
    st.sampled_from([0.0, 1.0, -3.5, float("nan"), float("inf")]),
)
keys = st.builds(
    lambda stem, end: f"{stem}.{end}",
    st.sampled_from(STEMS) | st.text(string.printable, max_size=30),
    st.sampled_from(ENDS) | st.text(string.ascii_letters + "._", max_size=20),
)
configs = st.one_of(
    st.none(),
    st.text(max_size=30),
    values.map(lambda v: json.dumps(v, allow_nan=True)),
    st.builds(
        lambda r, alpha, pattern: json.dumps(
            {"transformer.r": r, "transformer.lora_alpha": alpha, "transformer.rank_pattern": pattern}
        ),
        leaves,
        leaves,
        st.dictionaries(st.text(".*+?()[]\\d|^$abc", max_size=30), leaves, max_size=3),
    ),
)


@given(st.dictionaries(keys, tensors, max_size=6), configs)
def test_lora_key_sets(place, named, config):
    path = place / "lora.safetensors"
    path.write_bytes(save(named, {"lora_adapter_metadata": config} if config is not None else None))
    ends_well("LoRA key sets", lambda: read.read(read.load(path), SIZES, "nano"))


# job files and prompt libraries

NAMES = [
    "training",
    "dataset",
    "model",
    "previews",
    "embeds",
    "latents",
    "held_out",
    "output",
    "unknown",
    "version",
    "validation",
    "steps",
    "rank",
    "name",
    "learning_rate",
    "optimizer",
    "block_rates",
    "betas",
    "timesteps",
    "values",
    "folder",
    "references",
    "crop_options",
    "resolutions",
    "aspects",
    "prompts",
    "source",
    "guidance",
    "logs",
    "guide",
]
named = st.sampled_from(NAMES)
jobs = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(named, inner, max_size=5), max_leaves=20
)


@given(st.dictionaries(named, jobs, max_size=6) | values)
def test_job_files(place, value):
    (place / "job.json").write_text(json.dumps(value, allow_nan=True))
    ends_well("job files", lambda: job.load(place / "job.json"))


@given(st.text(max_size=200) | st.text('[]{}",:019eE.-+ntf\\ ', max_size=300))
def test_job_files_that_are_no_json(place, text):
    for name in ("job.json", "job.toml"):
        (place / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        ends_well("job files that are no JSON", lambda name=name: job.load(place / name))


@given(
    st.dictionaries(
        st.text(max_size=9), st.dictionaries(st.sampled_from(["prompt", "adapter_strength", "x"]), values), max_size=4
    )
    | values
)
def test_prompt_libraries(place, value):
    (place / "library.json").write_text(json.dumps(value))
    ends_well("prompt libraries", lambda: from_file(place / "library.json"))


# captions


@given(st.binary(max_size=300) | values.map(lambda v: json.dumps({"caption": v}).encode()))
def test_caption_files(place, data):
    for suffix in captions.SUFFIXES:
        path = place / f"a{suffix}"
        path.write_bytes(data)
        ends_well("caption files", lambda path=path: captions.read_file(path))


rows = st.dictionaries(
    st.sampled_from(
        [
            "image",
            "image_path",
            "caption",
            "text",
            "control",
            "control_path",
            "control_path_" + "9" * 5000,
            "control_path_1",
        ]
    ),
    values,
    max_size=5,
)


@given(st.lists(rows.map(json.dumps) | st.text(max_size=40), max_size=4))
def test_jsonl_files(place, lines):
    (place / "a.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    ends_well("JSONL files", lambda: captions.read_jsonl(place / "a.jsonl"))


# images


def made(kind: str) -> bytes:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((40, 24), 90).convert("RGB").save(out, kind, **({"exif": exif} if kind != "BMP" else {}))
    return out.getvalue()


IMAGES = [made(kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")]


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(IMAGES).flatmap(mangled) | st.binary(max_size=100))
def test_images(data):
    def work():
        facts = examine(data)
        assert len(facts.problem) < 400 and "object at 0x" not in facts.problem
        return facts if facts.problem else to_rgb(open_upright(data, "a.png"))

    ends_well("images", work)


# the route


class Request:
    """A request as aiohttp gives it, of which the route reads these."""

    def __init__(self, body: bytes, kind: str, length):
        self.body, self.content_type, self.content_length = body, kind, length

    async def read(self) -> bytes:
        return self.body


@given(st.binary(max_size=99) | values.map(lambda v: json.dumps({"run": v}).encode()), st.booleans())
def test_the_route(pack, body, honest):
    stop = sys.modules[f"{pack.__name__}.nodes.browser.routes"].stop
    request = Request(body, "application/json" if honest else "text/plain", len(body))
    response = ends_well("the route", lambda: asyncio.run(stop(request)))
    assert response.status == 400
