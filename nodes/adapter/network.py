"""MagiHuman's network in the shape ComfyUI calls networks in."""

import comfy.model_management
import comfy.model_prefetch
import comfy.ops
import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...magihuman_core.errors import InputError
from ...magihuman_core.model.attention import AttentionFunction, fold_heads, unfold_heads
from ...magihuman_core.model.config import DiTConfig
from ...magihuman_core.model.dit import Block, MagiHumanDiT
from ...magihuman_core.model.sequence import MODALITIES, Layout
from .ops import holding


class ComfyDiT(MagiHumanDiT):
    """The network with ComfyUI's layers, attention, block patches, wrappers and prefetching of weights.

    ComfyUI's packs and nodes expect the positional order of `forward`, transformer_options last, and the
    list of blocks to be named `blocks`.
    """

    official_config: DiTConfig  # as the file has it; `config` may be padded

    def __init__(self, config: DiTConfig, *, dtype=None, compute_dtype=None, device=None, operations=None, **_):
        computed = compute_dtype or dtype
        super().__init__(config, operations=holding(operations), dtype=dtype, device=device, compute_dtype=computed)
        self.dtype = dtype
        if getattr(operations, "_quant_config", None) is not None:
            self._keep_ends_precise(device)

    def _keep_ends_precise(self, device) -> None:
        """Embedders and heads anew: ComfyUI's layers for quantized weights ignore that these are to be fp32."""
        layers = [f"adapter.{name}_embedder" for name in MODALITIES] + ["final_linear_video", "final_linear_audio"]
        for layer in layers:
            path, _, name = layer.rpartition(".")
            owner, bias = self.get_submodule(path), path == "adapter"
            old = getattr(owner, name)
            setattr(owner, name, comfy.ops.manual_cast.Linear(
                old.in_features, old.out_features, bias=bias, dtype=torch.float32, device=device))

    def forward(  # type: ignore[override]  # ComfyUI calls every network in this way
        self, x, timestep, context=None, transformer_options=None, **kwargs
    ):
        """x: [video [B, C, T, H, W], audio [B, a, A]]; context: text [B, n, d]; timestep is not used.

        Returns the velocities [video, audio], noise minus clean, fp32.
        """
        options = {} if transformer_options is None else transformer_options
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timestep, context, options, **kwargs)

    def _forward(self, x, timestep, context=None, transformer_options=None, **_):
        if torch.is_tensor(x) or len(x) != 2:
            raise InputError(
                "The latent holds one stream only, but MagiHuman makes picture and sound together: use Empty "
                "MagiHuman Latent, or join a video and an audio latent with Concat AV Latent."
            )
        video, audio = x
        options = transformer_options
        run_block = BlockRunner(self, video.device, options)
        attention = comfy_attention(options)
        streams = self.forward_many([(video, audio, context)], run_block=run_block, attention=attention)
        run_block.finish()
        return list(streams[0])


def comfy_attention(options: dict) -> AttentionFunction:
    """The attention the user chose in ComfyUI, by start flag or by a node that overrides it."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = optimized_attention(*fold_heads(q, k, v), k.shape[2], skip_reshape=True, skip_output_reshape=True,
                                  transformer_options=options)
        return unfold_heads(out, length=q.shape[1])

    return attention


class BlockRunner:
    """Runs one block after another: cancelling, prefetching of the next block's weights, block patches."""

    def __init__(self, network: ComfyDiT, device: torch.device, options: dict):
        self.device, self.options = device, options
        self.replace = options.get("patches_replace", {}).get("dit", {})
        self.total = len(network.blocks)
        self.queue = comfy.model_prefetch.make_prefetch_queue(list(network.blocks), device, options)

    def __call__(self, index: int, block: Block, x: Tensor, layout: Layout, attention: AttentionFunction) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        comfy.model_prefetch.prefetch_queue_pop(self.queue, self.device, block)
        name = ("double_block", index)
        self.options.update(block_index=index, total_blocks=self.total, block_type="double", block=name)
        patch = self.replace.get(name)
        if patch is None:
            return block(x, layout, attention)

        def original_block(args: dict) -> dict:
            # A block writes into its input; a patch may want to compare input and output.
            return {"img": block(args["img"].clone(), layout, comfy_attention(args["transformer_options"]))}

        args = {"img": x, "layout": layout, "transformer_options": self.options}
        return patch(args, {"original_block": original_block})["img"]

    def finish(self) -> None:
        """Give the last block's prefetched weights back."""
        comfy.model_prefetch.prefetch_queue_pop(self.queue, self.device, None)
