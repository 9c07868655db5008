"""Who is measured. Each function loads the weights, then trains until ``done``, called after every step, raises."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module

import torch
from safetensors.torch import load_file

from .problem import TARGETS, TEXT, Problem, train

Done = Callable[[float | None], None]  # told the step's loss where it is known


def ours(
    problem: Problem, done: Done, ratio: float = 1.0, compile: bool = False, eight_bit: bool = False,
    selective: bool = False,
) -> None:  # fmt: skip
    """The engine on the MODEL that ComfyUI's loader gives a graph.

    ``ratio``: of the tokens that blocks 2 to -3 see. ``compile``: whether blocks run through torch.compile.
    ``eight_bit``: whether the blocks' Linears are multiplied in int8. ``selective``: whether a recomputation is
    given the outputs of attention.
    """
    model = comfyui_model(problem)
    from flux2_train.adapters import targets
    from flux2_train.adapters.live import Adapters, Site
    from flux2_train.flow.routing import draw_kept
    from flux2_train.host.borrowed.borrow import Borrowed, borrow_as, linears, training_mode
    from flux2_train.host.borrowed.eight_bit import EightBit
    from flux2_train.host.borrowed.routing import Route
    from flux2_train.host.borrowed.velocity import Condition, velocity
    from flux2_train.planning.layout import BLOCKS, OFF, SELECTIVE, Layout
    from flux2_train.settings.adapter import AdapterSettings

    layers = linears(model)
    rank, names = problem.rank, targets.select(layers)
    sites = {n: Site(layers[n].in_features, layers[n].out_features, rank, rank) for n in names}
    condition = Condition(problem.inputs()[1])
    with training_mode():
        adapters = Adapters(sites, AdapterSettings(), seed=0, device=problem.device)
    generator, nothing = torch.Generator().manual_seed(3), torch.zeros(1, problem.tokens, dtype=torch.bool)

    def predict(x_t, t):
        kept = draw_kept(problem.tokens, ratio, nothing, generator)
        routes = [Route(2, problem.double + problem.single - 3, kept)] if ratio < 1 else []
        return velocity(borrowed, x_t, t, [condition], routes)

    recomputed = SELECTIVE if selective else BLOCKS
    how = Borrowed(Layout(recomputed if problem.checkpointing else OFF), compiled=compile)
    fast = EightBit(model)
    fast.chosen, how.eight_bit = fast.possible, fast if eight_bit else None
    fast.keep(True)
    with borrow_as(model, adapters.deltas(), how) as borrowed, training_mode(), fast.acting():
        train(problem, predict, adapters.trainable(), done)


def compiled(problem: Problem, done: Done) -> None:
    """The engine with compiled blocks; its first step compiles them."""
    ours(problem, done, compile=True)


def kept(problem: Problem, done: Done) -> None:
    """The engine as it comes where memory has room: a recomputation is given the outputs of attention."""
    ours(problem, done, selective=True)


def compiled_kept(problem: Problem, done: Done) -> None:
    """The same with compiled blocks."""
    ours(problem, done, compile=True, selective=True)


def keeping_memory(problem: Problem, done: Done) -> None:
    """The engine without ``host.system.heap``: glibc keeps freed memory for reuse, also above 1 GB of weights."""
    from flux2_train.host.system import heap

    heap.WORTH_IT = math.inf
    ours(problem, done)


def int8(problem: Problem, done: Done) -> None:
    """The engine as with speed 'fast': all Linears of the blocks in int8."""
    ours(problem, done, eight_bit=True)


def routed_50(problem: Problem, done: Done) -> None:
    """The engine with token routing that keeps half of the tokens."""
    ours(problem, done, ratio=0.5)


def routed_25(problem: Problem, done: Done) -> None:
    """The engine with token routing that keeps a quarter of the tokens."""
    ours(problem, done, ratio=0.25)


def diffusers(problem: Problem, done: Done, compile: bool = False) -> None:
    """diffusers' Flux2Transformer2DModel with peft's LoRA on the same Linears, called as its pipeline calls it.

    ``compile``: whether its blocks run through torch.compile, each kind compiled once.
    """
    import peft

    from bench.as_diffusers import diffusers_transformer

    transformer = diffusers_transformer(load_file(problem.weights)).to(problem.device)
    transformer.add_adapter(
        peft.LoraConfig(r=problem.rank, lora_alpha=problem.rank, target_modules=TARGETS["diffusers"])
    )
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    for p in parameters:
        p.data = p.data.float()
    if problem.checkpointing:
        transformer.enable_gradient_checkpointing()
    if compile:
        transformer.compile_repeated_blocks()
    dtype, device = transformer.x_embedder.weight.dtype, problem.device
    text = problem.inputs()[1].to(device, dtype)
    zero, side = torch.tensor([0]), torch.arange(round(problem.tokens**0.5))
    places = torch.cartesian_prod(zero, side, side, zero).to(device)
    words = torch.cartesian_prod(zero, zero, zero, torch.arange(problem.text)).to(device)

    def predict(x_t, t):
        tokens = x_t.flatten(2).transpose(1, 2).to(dtype)
        # fp32 adapters on a half-precision base, as diffusers' training scripts run them
        with torch.autocast(x_t.device.type, dtype, enabled=dtype != torch.float32):
            found = transformer(tokens, text, t, places, words, return_dict=False)[0]
        return found.transpose(1, 2).reshape(x_t.shape)

    train(problem, predict, parameters, done)


def diffusers_compiled(problem: Problem, done: Done) -> None:
    """diffusers and peft with compiled blocks."""
    diffusers(problem, done, compile=True)


def node(problem: Problem, done: Done, bypass: bool = False) -> None:
    """ComfyUI's own TrainLoraNode, with its own loop; adapts every layer, which it cannot be told not to."""
    model = comfyui_model(problem)
    import comfy.utils
    from comfy_extras.nodes_train import TrainLoraNode

    comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL = comfy.utils.PROGRESS_THROTTLE_MIN_PERCENT = 0
    comfy.utils.set_progress_bar_global_hook(lambda *args, **kwargs: done(None))
    latent, text = problem.inputs()
    half = {"float32": "fp32", "bfloat16": "bf16"}[problem.dtype]
    values = dict(
        model=model, latents={"samples": latent}, positive=[[text, {}]], batch_size=1, steps=100000,
        grad_accumulation_steps=1, learning_rate=1e-4, rank=problem.rank, optimizer="AdamW", loss_function="MSE",
        seed=0, training_dtype=half, lora_dtype="fp32", quantized_backward=False, algorithm="LoRA",
        gradient_checkpointing=problem.checkpointing, checkpoint_depth=1, offloading=False, existing_lora="[None]",
        bucket_mode=False, bypass_mode=bypass,
    )  # fmt: skip
    with torch.inference_mode():
        TrainLoraNode.execute(**{name: [value] for name, value in values.items()})


def node_bypass(problem: Problem, done: Done) -> None:
    """TrainLoraNode in its bypass mode."""
    node(problem, done, bypass=True)


def import_libraries(name: str, problem: Problem) -> None:
    """Import what a contender needs before it loads weights."""
    if name.startswith("diffusers"):
        import_module("peft")
        import_module("bench.as_diffusers")
        return
    use_comfyui(problem)
    for module in ("comfy.sd", "comfy_extras.nodes_train", "flux2_train.adapters.live",
                   "flux2_train.host.borrowed.borrow"):  # fmt: skip
        import_module(module)


def use_comfyui(problem: Problem) -> None:
    """Make ComfyUI's modules importable, for the problem's device."""
    from flux2_train.host.system.bootstrap import import_comfyui

    import_comfyui(*(["--cpu"] if problem.device == "cpu" else []))


def comfyui_model(problem: Problem):
    """The problem's weights as the MODEL that ComfyUI's loader gives a graph."""
    use_comfyui(problem)
    import comfy.sd

    dtype = getattr(torch, problem.dtype)
    with torch.inference_mode():  # on a CPU ComfyUI would keep half-precision weights in fp32, and compute in fp32
        model = comfy.sd.load_diffusion_model(problem.weights, model_options={"dtype": dtype})
    model.set_model_compute_dtype(None if dtype == torch.float32 else dtype)
    return model if problem.text == TEXT else with_short_text(model, problem.text)


def with_short_text(model, tokens: int):
    """The MODEL, which from now on reads the last ``tokens`` of the text alone: those before are ComfyUI's padding."""
    whole = model.model.extra_conds

    def short(**arguments):
        conditions = whole(**arguments)
        conditions["c_crossattn"].cond = conditions["c_crossattn"].cond[:, -tokens:]
        return conditions

    model.model.extra_conds = short
    return model


CONTENDERS = {
    "ours": ours, "diffusers": diffusers, "node": node, "node_bypass": node_bypass, "routed_50": routed_50,
    "routed_25": routed_25, "compiled": compiled, "diffusers_compiled": diffusers_compiled, "int8": int8,
    "keeping_memory": keeping_memory, "kept": kept, "compiled_kept": compiled_kept,
}  # fmt: skip
