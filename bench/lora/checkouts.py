"""The programs that are no packages, out of their checkouts: musubi-tuner, ai-toolkit and OneTrainer."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from .trees import Flux2, Peer, Weights, Written, acting, acting_in_diffusers, draw, on_path, transformer_of

FOLDERS = {"musubi-tuner": "MUSUBI_TUNER", "ai-toolkit": "AI_TOOLKIT", "OneTrainer": "ONETRAINER"}


def _missing(name: str, inside: str) -> tuple[str, str]:
    """(the folder of a checkout's modules, why it cannot be used)."""
    variable = FOLDERS[name]
    folder = os.environ.get(variable, "")
    if not folder:
        return "", f"{variable} names no checkout of {name}"
    path = Path(folder) / inside
    return (str(path), "") if path.is_dir() else ("", f"{variable}={folder} is no checkout of {name}")


def musubi() -> Peer:
    """Its networks for FLUX.2, trained and loaded; files of other names through its own converter."""
    folder, missing = _missing("musubi-tuner", "src/musubi_tuner")
    on_path(str(Path(folder).parent) if folder else "")

    def network_of(kind: str):
        from importlib import import_module

        return import_module(f"musubi_tuner.networks.{kind}")

    def write(weights: Weights, folder: Path, kind: str) -> Written:
        tree = Flux2(weights)
        network = network_of(kind).create_arch_network(1.0, 4, 3.0, None, [], tree)
        network.apply_to(None, tree, False, True)
        draw(network)
        path = folder / "musubi.safetensors"
        network.save_weights(str(path), torch.float32, {"ss_network_module": f"networks.{kind}"})
        return Written(path, acting(tree.eval(), weights))

    def read(weights: Weights, path: Path) -> Weights:
        from musubi_tuner.convert_lora import convert_from_diffusers

        tensors = load_file(path)
        if not any(key.startswith("lora_unet_") for key in tensors):
            tensors = convert_from_diffusers("lora_unet_", tensors)
        kind = next(
            (k for k, mark in (("loha", "hada_"), ("lokr", "lokr_")) if any(mark in key for key in tensors)), ""
        )
        tree = Flux2(weights)
        factor = max((max(t.shape) for key, t in tensors.items() if key.endswith(".lokr_w1")), default=-1)
        options = {"factor": factor} if kind == "lokr" else {}  # a setting there, which the user has to know
        network = network_of(kind or "lora_flux_2").create_arch_network_from_weights(1.0, tensors, unet=tree, **options)
        network.apply_to(None, tree, False, True)
        if not network.unet_loras:
            raise ValueError("finds no layer")
        left = network.load_state_dict(tensors, strict=False)
        if left.unexpected_keys or left.missing_keys:
            raise ValueError(f"keys left: {', '.join([*left.unexpected_keys, *left.missing_keys][:2])}")
        return acting(tree.eval(), weights)

    kinds = {"LoRA": "lora_flux_2", "LoHa": "loha", "LoKr": "lokr"}
    writes = {name: lambda w, f, k=kind: write(w, f, k) for name, kind in kinds.items()}
    return Peer("musubi-tuner", writes, read, missing)


def ai_toolkit() -> Peer:
    """Its network for FLUX.2; what stands for its model renames keys as ``Flux2Model`` there does."""
    folder, missing = _missing("ai-toolkit", "toolkit")
    on_path(str(Path(folder).parent) if folder else "")

    def network_of(tree, kind: str, **options):
        from toolkit.config_modules import NetworkConfig
        from toolkit.lora_special import LoRASpecialNetwork

        model = _AiToolkitsModel()  # the network holds a weak reference only
        config = NetworkConfig(**{"type": kind, "linear": 4, "linear_alpha": 4, **options})
        network = LoRASpecialNetwork(
            text_encoder=None, unet=tree, lora_dim=config.linear, multiplier=1.0, alpha=config.linear_alpha,
            train_unet=True, train_text_encoder=False, network_config=config, network_type=kind, transformer_only=True,
            is_transformer=True, target_lin_modules=["Flux2"], target_conv_modules=[], base_model=model,
            full_if_contains=options.get("full_if_contains"),
        )  # fmt: skip
        network.kept_model = model
        network.apply_to(None, tree, False, True)
        network.force_to("cpu", torch.float32)
        network.is_active = True
        network._update_torch_multiplier()
        return network

    def write(weights: Weights, folder: Path, kind: str, **options) -> Written:
        tree = Flux2(weights)
        network = network_of(tree, kind, **options)
        draw(network.get_all_modules())
        path = folder / "ai_toolkit.safetensors"
        network.save_weights(str(path), dtype=torch.float32)
        return Written(path, acting(tree.eval(), weights))

    def read(weights: Weights, path: Path) -> Weights:
        tensors, tree = load_file(path), Flux2(weights)
        kind = "lokr" if any("lokr_" in key for key in tensors) else "lora"
        kind = "dora" if any(key.endswith(".magnitude") for key in tensors) else kind
        ranks = {t.shape[0] for k, t in tensors.items() if k.endswith((".lora_A.weight", ".lora_down.weight"))}
        rank = max(ranks, default=4)
        full = all(".lokr_w2_a" not in key for key in tensors)
        if kind == "lokr":  # settings there, which the user has to know
            rank = max((t.shape[1] for key, t in tensors.items() if key.endswith(".lokr_w2_a")), default=4)
        factor = max((max(t.shape) for key, t in tensors.items() if key.endswith(".lokr_w1")), default=-1)
        network = network_of(tree, kind, linear=rank, linear_alpha=rank, lokr_full_rank=full, lokr_factor=factor)
        before = {name: p.clone() for name, p in network.named_parameters()}
        left = network.load_weights(str(path))
        if all(torch.equal(p, before[name]) for name, p in network.named_parameters()):
            raise ValueError("its loader finds no key")
        if left:
            raise ValueError(f"keys left: {', '.join(list(left)[:2])}")
        return acting(tree.eval(), weights)

    writes = {
        "LoRA": lambda w, f: write(w, f, "lora"),
        "DoRA": lambda w, f: write(w, f, "dora"),
        "LoKr": lambda w, f: write(w, f, "lokr"),
        "LoKr, low rank": lambda w, f: write(w, f, "lokr", lokr_full_rank=False, linear_alpha=2, lokr_factor=8),
        "full rank": lambda w, f: write(w, f, "fullrank"),
        "differences": lambda w, f: write(w, f, "lora", full_if_contains=["attn"]),
    }
    return Peer("ai-toolkit", writes, read, missing)


class _AiToolkitsModel:
    """What its network asks its model for FLUX.2; the whole model would load text encoder and VAE."""

    use_old_lokr_format, arch = False, "flux2"

    def get_transformer_block_names(self) -> list[str]:
        return ["double_blocks", "single_blocks"]

    def convert_lora_weights_before_save(self, tensors: dict) -> dict:
        return {key.replace("transformer.", "diffusion_model."): tensor for key, tensor in tensors.items()}

    def convert_lora_weights_before_load(self, tensors: dict) -> dict:
        return {key.replace("diffusion_model.", "transformer."): tensor for key, tensor in tensors.items()}


KINDS = {  # OneTrainer's settings, by what they make
    "LoRA": {"peft_type": "LORA"},
    "DoRA": {"peft_type": "LORA", "lora_decompose": True, "lora_decompose_output_axis": True},
    "DoRA over inputs": {"peft_type": "LORA", "lora_decompose": True},
    "LoHa": {"peft_type": "LOHA"},
    "LoKr": {"peft_type": "LOKR", "lokr_dim": 4, "lokr_decompose_factor": 8},
    "LoKr, full matrix": {"peft_type": "LOKR", "lokr_dim": 4, "lokr_full_matrix": True},
    "DoRA on LoKr": {"peft_type": "LOKR", "lokr_dim": 4, "lokr_decompose_factor": 8, "lokr_weight_decompose": True},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 16},
    "OFT, scaled": {"peft_type": "OFT_2", "oft_block_size": 16, "oft_scaled": True},
    "OFT, shared": {"peft_type": "OFT_2", "oft_block_size": 16, "oft_block_share": True},
}
FORMATS = ("DIFFUSERS_LORA", "KOHYA_LORA", "LEGACY_LORA", "ORIGINAL_LORA", "COMFY_LORA")


def onetrainer() -> Peer:
    """Its adapters, its saver in each of its formats, its loader with settings that fit the file."""
    folder, missing = _missing("OneTrainer", "modules")
    on_path(str(Path(folder).parent) if folder else "")

    def model_of(weights: Weights):
        from modules.model.Flux2Model import Flux2Model
        from modules.util.enum.ModelType import ModelType

        model = Flux2Model(ModelType.FLUX_2)
        model.transformer = transformer_of(weights)
        return model

    def adapters(model, settings: dict, fuse: bool):
        from modules.module.LoRAModule import LoRAModuleWrapper
        from modules.util.config.TrainConfig import TrainConfig
        from modules.util.enum.ModelType import PeftType

        config = TrainConfig.default_values()
        defaults = {"lora_rank": 4, "lora_alpha": 3.0, "train_device": "cpu", "lora_decompose_norm_epsilon": True}
        for key, value in {**defaults, **settings}.items():
            setattr(config, key, PeftType[value] if key == "peft_type" else value)
        blocks, spec = ["transformer_block"], model.fusion_groups()
        return LoRAModuleWrapper(model.transformer, "transformer", config, blocks, fusion_spec=spec, fuse=fuse)

    def write(weights: Weights, folder: Path, settings: dict, format: str) -> Written:
        from modules.modelSaver.flux2.Flux2LoRASaver import Flux2LoRASaver
        from modules.util.enum.ModelFormat import ModelFormat

        chosen, model = ModelFormat[format], model_of(weights)
        model.transformer_lora = adapters(model, settings, chosen.needs_qkv_fusion())
        draw([getattr(module, "module", module) for module in model.transformer_lora.lora_modules.values()])
        model.transformer_lora.hook_to_module()
        path = folder / "onetrainer.safetensors"
        Flux2LoRASaver().save(model, chosen, str(path), torch.float32)
        return Written(path, acting_in_diffusers(model.transformer, weights))

    def read(weights: Weights, path: Path) -> Weights:
        from modules.modelLoader.mixin.LoRALoaderMixin import LoRALoaderMixin

        class Loader(LoRALoaderMixin):  # as its Flux2LoRALoader, in a module that wants transformers 5
            def _legacy_conversion(self, model):
                return self._mixture_legacy_conversion(model)

        model = model_of(weights)
        model.lora_state_dict = Loader()._to_canonical(model, load_file(path))
        settings = _fitting(model.lora_state_dict)
        fuse = any(".attn.qkv." in key or ".attn.added_qkv." in key for key in model.lora_state_dict)
        model.transformer_lora = adapters(model, settings, fuse)
        model.transformer_lora.load_state_dict(model.lora_state_dict)
        model.transformer_lora.hook_to_module()
        return acting_in_diffusers(model.transformer, weights)

    writes = {
        f"{kind}, {format.removesuffix('_LORA').lower()}": lambda w, f, s=settings, o=format: write(w, f, s, o)
        for kind, settings in KINDS.items()
        for format in FORMATS
    }
    return Peer("OneTrainer", writes, read, missing)


def _fitting(tensors: dict) -> dict:
    """The settings that a user of OneTrainer would have to choose for a file; alpha is the default, 1."""
    first = SimpleNamespace(**{mark: next((t for k, t in tensors.items() if mark in k), None)
                               for mark in ("lora_down", "hada_w1_b", "lokr_w1", "lokr_w2", "lokr_w2_a", "oft_R",
                                            "dora_scale")})  # fmt: skip
    decomposed = first.dora_scale is not None
    by_rows = decomposed and first.dora_scale.shape[0] != 1
    found: dict = {"lora_alpha": 1.0}
    if first.hada_w1_b is not None:
        return {**found, "peft_type": "LOHA", "lora_rank": len(first.hada_w1_b)}
    if first.lokr_w1 is not None:
        alpha = next((int(t) for k, t in tensors.items() if k.endswith(".alpha")), 4)
        rank = first.lokr_w2_a.shape[1] if first.lokr_w2_a is not None else alpha  # whole factors act at alpha / dim
        factor = max(first.lokr_w1.shape) if "lokr_w1_a" not in str(list(tensors)[:9]) else -1
        full = first.lokr_w2_a is None
        return {**found, "peft_type": "LOKR", "lokr_dim": rank, "lokr_full_matrix": full, "lokr_decompose_factor":
                factor, "lokr_weight_decompose": decomposed, "lokr_dora_on_output": by_rows}  # fmt: skip
    if first.oft_R is not None:
        triangles = next(t for k, t in tensors.items() if k.endswith("oft_R.weight"))
        side = round((1 + (1 + 8 * triangles.shape[-1]) ** 0.5) / 2)
        scaled = any(k.endswith("scaled_oft") for k in tensors)
        return {**found, "peft_type": "OFT_2", "oft_block_size": side, "oft_scaled": scaled, "oft_block_share":
                len(triangles) == 1}  # fmt: skip
    rank = len(first.lora_down) if first.lora_down is not None else 4
    return {**found, "peft_type": "LORA", "lora_rank": rank, "lora_decompose": decomposed,
            "lora_decompose_output_axis": by_rows}  # fmt: skip
