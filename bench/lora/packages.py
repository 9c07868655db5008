"""The programs that are packages: diffusers, peft, LyCORIS (SimpleTuner's adapters are these three's) and ComfyUI."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bench.speed.problem import TARGETS

from .trees import Peer, Weights, Written, acting_in_diffusers, draw, in_blocks, transformer_of

SPLIT = ["Flux2Attention", "Flux2FeedForward", "Flux2ParallelSelfAttention"]  # SimpleTuner's preset for FLUX.2


def diffusers() -> Peer:
    """diffusers' own saving function, which SimpleTuner calls too, and its own loader for FLUX.2."""
    missing = "" if find_spec("diffusers") else "diffusers is not installed"

    def write(weights: Weights, folder: Path, **options) -> Written:
        import peft
        from diffusers import Flux2Pipeline

        transformer = transformer_of(weights)
        config = peft.LoraConfig(r=4, target_modules=TARGETS["diffusers"], **options)
        transformer.add_adapter(config)
        _draw(transformer)
        settings = {k: list(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
        layers = peft.get_peft_model_state_dict(transformer)
        Flux2Pipeline.save_lora_weights(folder, layers, transformer_lora_adapter_metadata=settings)
        return Written(folder / "pytorch_lora_weights.safetensors", acting_in_diffusers(transformer, weights))

    def read(weights: Weights, path: Path) -> Weights:
        from diffusers.loaders import Flux2LoraLoaderMixin as Loader

        transformer = transformer_of(weights)
        state, metadata = Loader.lora_state_dict(
            path.parent, weight_name=path.name, local_files_only=True, return_lora_metadata=True
        )
        if not state or not all("lora" in key for key in state):
            raise ValueError("its loader raises: keys without 'lora'" if state else "its loader finds no key")
        Loader.load_lora_into_transformer(state, transformer, metadata=metadata)
        return acting_in_diffusers(transformer, weights)

    patterns = {"rank_pattern": {r"transformer_blocks\.\d+\.attn\.(to_q|to_k)": 2, "to_out": 6},
                "alpha_pattern": {r".*\.to_v": 7}}  # fmt: skip
    kinds = {
        "LoRA": {"lora_alpha": 4},
        "LoRA, alpha 9": {"lora_alpha": 9},
        "LoRA, patterns": {"lora_alpha": 9, **patterns},
        "rsLoRA": {"lora_alpha": 9, "use_rslora": True},
        "DoRA": {"lora_alpha": 9, "use_dora": True},
    }
    writes = {kind: lambda w, f, o=options: write(w, f, **o) for kind, options in kinds.items()}
    return Peer("diffusers", writes, read, missing)


def peft() -> Peer:
    """peft's own folder."""
    missing = "" if find_spec("peft") and find_spec("diffusers") else "peft or diffusers is not installed"

    def read(weights: Weights, path: Path) -> Weights:
        import peft

        if path.name != "adapter_model.safetensors":
            raise ValueError("reads its own folders only")
        model = peft.PeftModel.from_pretrained(transformer_of(weights), path.parent)
        return acting_in_diffusers(model.base_model.model, weights)

    kinds = {
        "LoRA": ("LoraConfig", {"lora_alpha": 9}),
        "DoRA": ("LoraConfig", {"lora_alpha": 9, "use_dora": True}),
        "LoHa": ("LoHaConfig", {"alpha": 9}),
        "LoKr": ("LoKrConfig", {"alpha": 9}),
        "OFT": ("OFTConfig", {"oft_block_size": 16, "r": 0}),
    }
    writes = {name: lambda w, f, k=kind, o=options: _write_peft(w, f, k, o) for name, (kind, options) in kinds.items()}
    return Peer("peft", writes, read, missing)


def _write_peft(weights: Weights, folder: Path, kind: str, options: dict) -> Written:
    import peft

    transformer = transformer_of(weights)
    config = getattr(peft, kind)(**{"r": 4, "target_modules": TARGETS["diffusers"], **options})
    model = peft.get_peft_model(transformer, config)
    _draw(model)
    model.save_pretrained(folder)
    return Written(folder / "adapter_model.safetensors", acting_in_diffusers(model.base_model.model, weights))


def _draw(model) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter * (1 + 0.2 * noise) if "magnitude" in name else 0.1 * noise)


LYCORIS = {  # SimpleTuner's lycoris_config, by what it makes
    "LoRA": {"algo": "lora"},
    "DoRA": {"algo": "lora", "dora_wd": True},
    "DoRA over inputs": {"algo": "lora", "dora_wd": True, "wd_on_output": False},
    "LoHa": {"algo": "loha"},
    "DoRA on LoHa": {"algo": "loha", "dora_wd": True},
    "LoKr": {"algo": "lokr", "factor": 8},
    "LoKr, full_matrix": {"algo": "lokr", "factor": 4, "full_matrix": True},
    "DoRA on LoKr": {"algo": "lokr", "factor": 8, "dora_wd": True},
    "DoRA on LoKr over inputs": {"algo": "lokr", "factor": 8, "dora_wd": True, "wd_on_output": False},
    "full": {"algo": "full"},
    "diag-OFT": {"algo": "diag-oft"},
    "diag-OFT, constraint": {"algo": "diag-oft", "constraint": 0.01},
    "diag-OFT, rescaled": {"algo": "diag-oft", "rescaled": True},
    "BOFT": {"algo": "boft", "linear_dim": 32},  # 9 h rows are no power of two times less than 18
    "GLoRA": {"algo": "glora"},
    "T-LoRA": {"algo": "tlora"},
    "IA3": {"algo": "ia3"},
}


def lycoris() -> Peer:
    """LyCORIS, with the settings that SimpleTuner gives it; SimpleTuner saves its file with its own function."""
    missing = "" if find_spec("lycoris") and find_spec("diffusers") else "lycoris-lora or diffusers is not installed"

    def write(weights: Weights, folder: Path, options: dict) -> Written:
        from lycoris import LycorisNetwork, create_lycoris

        transformer = transformer_of(weights)
        LycorisNetwork.apply_preset({"target_module": SPLIT})
        network = create_lycoris(transformer, 1.0, **{"linear_dim": 8, "linear_alpha": 2, **options})
        network.apply_to()
        draw(network)
        path = folder / "pytorch_lora_weights.safetensors"
        network.save_weights(str(path), torch.float32, {"lycoris_config": "{}"})
        return Written(path, acting_in_diffusers(transformer.eval(), weights))

    def read(weights: Weights, path: Path) -> Weights:
        from lycoris import create_lycoris_from_weights

        tensors = load_file(path)
        if not any(key.startswith("lycoris_") for key in tensors):
            raise ValueError("reads names with lycoris_ only")
        transformer = transformer_of(weights)
        network, _ = create_lycoris_from_weights(1.0, None, transformer, tensors)
        network.apply_to()
        return acting_in_diffusers(transformer.eval(), weights)

    writes = {kind: lambda w, f, o=options: write(w, f, o) for kind, options in LYCORIS.items()}
    return Peer("LyCORIS / SimpleTuner", writes, read, missing)


def comfyui() -> Peer:
    """ComfyUI's own trainer's adapters, and its stock loader, merged in fp32."""

    def write(weights: Weights, folder: Path, algorithm: str) -> Written:
        from comfy_extras.nodes_train import _create_weight_adapter

        tensors, made = {}, {}
        for name in in_blocks(weights):
            module = torch.nn.Linear(*weights[f"{name}.weight"].T.shape, bias=False)
            module.weight = torch.nn.Parameter(weights[f"{name}.weight"].clone(), requires_grad=False)
            adapter, own = _create_weight_adapter(module, f"diffusion_model.{name}", {}, algorithm, torch.float32, 8)
            alpha = adapter.alpha.clone()
            draw(adapter)
            with torch.no_grad():
                adapter.alpha.copy_(alpha)
                made[name] = adapter(module.weight).clone()
            tensors |= {key: value.detach().clone() for key, value in own.items()}
        save_file(tensors, folder / "ComfyUI_lora.safetensors")  # as its SaveLoRA does
        return Written(folder / "ComfyUI_lora.safetensors", made)

    def read(weights: Weights, path: Path) -> Weights:
        import comfy.lora
        import comfy.lora_convert
        import comfy.utils

        tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(path), safe_load=True))
        patches = comfy.lora.load_lora(tensors, _keys(weights), log_missing=False)
        if not patches:
            raise ValueError("its loader finds no key")
        made = {name: weights[f"{name}.weight"].clone() for name in in_blocks(weights)}
        for key, patch in patches.items():
            whole, offset = (key, None) if isinstance(key, str) else (key[0], key[1])
            name = whole.removeprefix("diffusion_model.").removesuffix(".weight")
            made[name] = comfy.lora.calculate_weight([(1.0, patch, 1.0, offset, None)], made[name], whole)
        return made

    writes = {name: lambda w, f, a=name: write(w, f, a) for name in ("LoRA", "LoHa", "LoKr", "OFT")}
    return Peer("ComfyUI", writes, read)


def _keys(weights: Weights) -> dict:
    import comfy.lora

    return comfy.lora.model_lora_keys_unet(comfyui_model(weights).model, {})


def comfyui_model(weights: Weights):
    """ComfyUI's MODEL with these weights."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict({name: w.clone() for name, w in weights.items()})
