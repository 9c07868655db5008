"""Counting bytes of a real step: what autograd saves, and what is alive at most, on models without memory (meta).

Full-size models run on the meta device, where every tensor has its shape, type and lifetime and no contents. Attention
and RMSNorm go the way they go on CUDA, whose kernels exist there in shape only.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager

import comfy.ldm.flux.model
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from flux2_train.adapters import targets
from flux2_train.adapters.live import Adapters, Site
from flux2_train.host.borrowed.borrow import Borrowed, borrow_as, linears, training_mode
from flux2_train.host.borrowed.velocity import Condition, velocity
from flux2_train.settings.adapter import AdapterSettings

META = torch.device("meta")


class Saved:
    """Bytes of the distinct storages that autograd saves inside, ``now`` and at ``most``."""

    def __init__(self):
        self.held, self.now, self.most = {}, 0, 0

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Kept(self, tensor), lambda kept: kept.tensor)


class _Kept:
    def __init__(self, saved, tensor):
        storage = tensor.untyped_storage()
        self.saved, self.tensor, self.place, self.size = saved, tensor, storage._cdata, storage.nbytes()
        saved.now += 0 if saved.held.get(self.place) else self.size
        saved.held[self.place] = saved.held.get(self.place, 0) + 1
        saved.most = max(saved.most, saved.now)

    def __del__(self):
        self.saved.held[self.place] -= 1
        if not self.saved.held[self.place]:
            self.saved.now -= self.size


class Live(TorchDispatchMode):
    """Bytes of the storages that operations inside have made and that are still alive, ``now`` and at ``most``."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tree_map_only(torch.Tensor, lambda t: self._note(t, 0), (args, kwargs or {}))  # what came from outside
        out = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, lambda t: self._note(t, t.untyped_storage().nbytes()), out)
        return out

    def _note(self, tensor, size):
        storage = tensor.untyped_storage()
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        weakref.finalize(storage, self._gone, storage._cdata, size)
        self.now += size
        self.most = max(self.most, self.now)

    def _gone(self, place, size):
        self.known.discard(place)
        self.now -= size


class _NormInShape(torch.autograd.Function):
    """CUDA's fused RMSNorm: keeps its input and a factor per row."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad):
        return torch.empty_like(ctx.saved_tensors[0]), None


def as_on_cuda(monkeypatch):
    """Let what runs on the meta device keep what CUDA's kernels keep, and ComfyUI leave such models where they are."""

    def attention(q, k, v, *args, **kwargs):
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(comfy.ops, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(F, "rms_norm", lambda x, shape, weight=None, eps=None: _NormInShape.apply(x, weight))
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu", lambda models, **kwargs: [m.inject_model() for m in models]
    )


def on_meta(hidden, double, single, context, guidance=False, dtype=torch.bfloat16):
    """A FLUX.2 MODEL of these sizes without memory for its weights."""
    config = dict(
        image_model="flux2", in_channels=128, out_channels=128, vec_in_dim=None, context_in_dim=context,
        hidden_size=hidden, mlp_ratio=3.0, num_heads=hidden // 128, depth=double, depth_single_blocks=single,
        axes_dim=[32] * 4, theta=2000, patch_size=1, qkv_bias=False, guidance_embed=guidance, txt_ids_dims=[3],
        global_modulation=True, mlp_silu_act=True, ops_bias=False, default_ref_method="index", ref_index_scale=10.0,
        dtype=dtype,
    )  # fmt: skip
    known = comfy.supported_models.Flux2(config)
    known.set_inference_dtype(dtype, None)
    return comfy.model_patcher.ModelPatcher(known.get_model({}, "", device=META), load_device=META, offload_device=META)


def adapters_on(model, preset, rank, device, **kind):
    """Adapters at the preset's Linears of a MODEL, on any device."""
    layers = linears(model)
    sites = {n: Site(layers[n].in_features, layers[n].out_features, rank, rank) for n in targets.select(layers, preset)}
    with training_mode():
        adapters = Adapters(sites, AdapterSettings(**kind), 0, row_norms=lambda n: torch.ones(layers[n].out_features))
        for module in adapters.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.requires_grad:
                    module._parameters[name] = torch.nn.Parameter(parameter.detach().to(device))
    return adapters


@contextmanager
def checkpointing_on_meta():
    """Skip the test where torch is so old (2.5) that its checkpointing does not run there."""
    try:
        yield
    except RuntimeError as error:
        if "torch has no module of `meta`" not in str(error):
            raise
        pytest.skip("this torch's checkpointing does not know the meta device")


@checkpointing_on_meta()
def step(model, adapters, side, batch, layout, device, routes=()):
    """(bytes saved, bytes alive at most, without the gradients of parameters) of one step at ``side`` x ``side``."""
    saved, live = Saved(), Live()
    with torch.device(device):
        x, t = torch.zeros(batch, 128, side, side), torch.full((batch,), 0.5)
        text = torch.zeros(1, 512, model.model.diffusion_model.params.context_in_dim)
    keeping = adapters.unchanging()
    with borrow_as(model, adapters.deltas(), Borrowed(layout)) as borrowed, training_mode(), keeping, live:
        with saved.hooks():
            loss = velocity(borrowed, x, t, [Condition(text)] * batch, routes).square().mean()
        loss.backward()
    return saved.most, live.most
