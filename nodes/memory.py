from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.memory.options import AUTO, OFF, ON, MemoryConfig
from .types import CATEGORY, FluxMemory


class Memory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Memory",
            display_name="Memory",
            category=CATEGORY,
            description="What stays in host memory while LoRA Trainer trains, and what is computed twice to "
            "save memory. Nothing here changes what is learned. Untouched, everything is chosen to fit your card.",
            search_aliases=["vram", "blocks to swap", "group offload", "layer offloading", "low vram", "out of memory"],
            inputs=[
                io.Int.Input(
                    "blocks_to_swap", default=0, min=0, max=1000,
                    tooltip="Stream so many blocks of the base from host memory. klein-4b has 25, klein-9b 32, dev 56. "
                    "0 leaves it to 'offload' of LoRA Trainer.",
                ),
                io.Float.Input(
                    "offload_percent", default=0.0, min=0.0, max=100.0, step=1.0,
                    tooltip="The same as a share of all blocks. 0 leaves it to 'offload' of LoRA Trainer.",
                ),
                io.Combo.Input(
                    "group_offload", options=list(MemoryConfig.GROUPS), default=OFF,
                    tooltip="Stream in groups of whole blocks, or Linear by Linear ('leaf': the smallest buffers). On "
                    "its own it streams everything; with one of the amounts above, so much.",
                ),
                io.Int.Input(
                    "blocks_per_group", default=1, min=1, max=1000, advanced=True,
                    tooltip="For group_offload 'block': how many blocks come together. More needs larger buffers.",
                ),
                io.Boolean.Input(
                    "stream", default=True, advanced=True,
                    tooltip="Fetch the next group on a stream of its own while one is in use. Off waits for each: "
                    "slower, with one thing less that could go wrong.",
                ),
                io.Combo.Input(
                    "recompute", options=list(MemoryConfig.RECOMPUTE), default=AUTO, advanced=True,
                    tooltip="What checkpointing keeps: 'blocks' each block's input, 'selective' attention's output "
                    "too, which is then not computed twice. 'auto' takes the fastest that fits.",
                ),
                io.Int.Input(
                    "recompute_every", default=0, min=0, max=1000, advanced=True,
                    tooltip="Recompute every n-th block only and keep the others: faster, more memory. 0 is auto.",
                ),
                io.Combo.Input(
                    "offload_activations", options=[AUTO, ON, OFF], default=AUTO, advanced=True,
                    tooltip="Keep the inputs of recomputed blocks in host memory until backward. 'auto' as needed.",
                ),
                io.Int.Input(
                    "micro_batch", default=0, min=0, max=1024, advanced=True,
                    tooltip="Run so many images of a batch at a time; the loss stays the same. 0 is auto.",
                ),
                io.Float.Input(
                    "memory_limit", default=0.0, min=0.0, max=1e6, step=0.5, advanced=True,
                    tooltip="Plan as if the card had only so many GB free; others keep the rest. 0 is all.",
                ),
                io.Float.Input(
                    "pinned_memory", default=0.0, min=0.0, max=1e6, step=0.5, advanced=True,
                    tooltip="Pin at most so many GB of streamed weights in host memory: they arrive faster, and no "
                    "other program has that memory meanwhile. 0 is half of the memory that is free or holds them.",
                ),
            ],
            outputs=[FluxMemory.Output(display_name="memory")],
        )  # fmt: skip

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        return io.NodeOutput(MemoryConfig(**settings))
