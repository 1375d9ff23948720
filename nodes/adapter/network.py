"""MagiHuman's network in the shape ComfyUI calls networks in."""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import comfy.model_management
import comfy.model_prefetch
import comfy.ops
import comfy.patcher_extension
import torch
import torch.nn.functional as F
from comfy.ldm.modules import attention as comfy_attentions
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...magihuman_core.errors import InputError
from ...magihuman_core.model.attention import AttentionFunction, fold_heads, unfold_heads
from ...magihuman_core.model.config import DiTConfig
from ...magihuman_core.model.dit import Block, MagiHumanDiT
from ...magihuman_core.model.sequence import MODALITIES, Layout
from ...magihuman_core.sampling.windows import fit_audio
from ...magihuman_core.sizes import decoded_frames, full_audio
from .ops import holding

PER_COND = ("cond_or_uncond", "uuids")  # of the options: one entry for each condition in a batch


class ComfyDiT(MagiHumanDiT):
    """The network with ComfyUI's layers, attention, block patches, wrappers and prefetching of weights.

    ComfyUI's packs and nodes expect the positional order of `forward`, transformer_options last, and the
    list of blocks to be named `blocks`.
    """

    official_config: DiTConfig  # as the file has it; `config` may be padded
    has_run = False  # all blocks, at least once

    def __init__(self, config: DiTConfig, *, dtype=None, compute_dtype=None, device=None, operations=None, **_):
        computed = compute_dtype or dtype
        super().__init__(config, operations=holding(operations), dtype=dtype, device=device, compute_dtype=computed)
        self.dtype = dtype
        self.in_channels = config.video_channels  # asked for by core's RenormCFG
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
        if wrappers:  # some write into it, as EasyCache does; it is a part of the sampler's own vector, no cast between
            x = x.clone() if torch.is_tensor(x) else [stream.clone() for stream in x]
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timestep, context, options, **kwargs)

    def _forward(self, x, timestep, context=None, transformer_options=None, text_lengths=(), **_):
        streams = [x] if torch.is_tensor(x) else x
        if len(streams) == 1 and torch.is_grad_enabled():
            return self._video_alone(streams[0], timestep, context, transformer_options)
        if len(streams) != 2:
            raise InputError(
                "The latent holds one stream only, but MagiHuman makes picture and sound together: use Empty "
                "MagiHuman Latent, or join a video and an audio latent with Concat AV Latent."
            )
        video, audio = streams
        options = transformer_options
        window, length = options.get("context_window"), audio.shape[2]  # of core's Context Windows
        anchor = getattr(window, "causal_anchor_index", -1) >= 0
        video = video[:, :, 1:] if anchor else video  # a frame before the window, without its audio
        audio = audio if window is None else fit_audio(audio, full_audio(video.shape[2]))
        inputs = by_text(video, audio, context, text_lengths)
        with BlockRunner(self, video.device, options) as run_block:
            streams = self.forward_many(inputs, run_block=run_block, attention=comfy_attention(options))
        video, audio = (torch.cat(parts) for parts in zip(*streams, strict=True))
        return [F.pad(video, (0, 0, 0, 0, 1, 0)) if anchor else video, fit_audio(audio, length)]

    def _video_alone(self, video, timestep, context, options):
        """The video's velocity, for core's training, which knows one stream: the audio is noise of the same level.

        video: [B, C, T, H, W]; timestep: 0 to 1000.
        """
        length = decoded_frames(video.shape[2])
        audio = torch.randn(video.shape[0], self.config.audio_channels, length, device=video.device)
        audio *= (timestep / 1000).reshape(-1, 1, 1)
        return self._forward([video, audio], timestep, context, options)[0]


def by_text(video: Tensor, audio: Tensor, text: Tensor, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A batch as the network's inputs, one for each of the texts that were joined in it, without their padding.

    lengths: of these texts. Where they do not go with `text`, since another node changed it, it is taken as it is,
    unless padding may be in it: attention is joint, so that would spoil the clip. Raises InputError then.
    """
    count = len(lengths)
    if count > 1 and text.shape[1] == max(lengths) and text.shape[0] % count == 0:
        chunks = (stream.chunk(count) for stream in (video, audio, text))
        return [(v, a, t[:, :length]) for v, a, t, length in zip(*chunks, lengths, strict=True)]
    if count > 1 and min(lengths) < max(lengths) and text.shape[1] > min(lengths):
        raise InputError(f"Texts of {', '.join(map(str, lengths))} tokens reach the network as one of shape "
                         f"{list(text.shape)}: another node changed it on its way, and its padding cannot be told from "
                         "it. Take off the node that changes the conditioning while the model runs.")
    return [(video, audio, text)]


def comfy_attention(options: dict) -> AttentionFunction:
    """The attention the user chose in ComfyUI, by start flag or by a node that overrides it."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        folded = fold_heads(q, k, v)
        if hasattr(optimized_attention, "container_function"):  # else another pack's own, which expects tensors
            # So that a kernel in 8 bits frees what it has made smaller.
            folded = tuple(map(comfy_attentions.AttentionTensorContainer, folded))
        out = optimized_attention(*folded, k.shape[2], skip_reshape=True, skip_output_reshape=True,
                                  transformer_options=options)
        return unfold_heads(out, length=q.shape[1])

    return attention


def can_record() -> bool:
    """Whether this core records allocations of blocks, by names and arguments that were read there, and not tried."""
    scope = getattr(comfy.model_prefetch, "malloc_graph_scope", None)
    return (scope is not None and list(inspect.signature(scope).parameters) == ["device"]
            and "malloc_scope" in inspect.signature(comfy.model_prefetch.prefetch_queue_pop).parameters)


class BlockRunner:
    """Runs one block after another: cancelling, prefetching of the next block's weights, block patches.

    Newer cores record what blocks allocate, and give every later pass the same addresses (Comfy Compiler). What is
    recorded has to be freed within the pass: the residual stream is older than the first block and is written into, so
    that holds for ours. It need not hold for what others patch in, such as caches, nor for training, nor for a first
    pass, in which kernels are compiled and get memory that they keep: then nothing is recorded. Nor are blocks captured
    as CUDA graphs: core does that for loops of small steps, which ours are not.
    """

    def __init__(self, network: ComfyDiT, device: torch.device, options: dict):
        self.network, self.device, self.options = network, device, options
        self.replace = options.get("patches_replace", {}).get("dit", {})
        self.total = len(network.blocks)
        self.queue = comfy.model_prefetch.make_prefetch_queue(list(network.blocks), device, options)
        self.recorded = can_record() and network.has_run and not self.replace and not torch.is_grad_enabled()
        self.recording = ExitStack()

    def __enter__(self) -> "BlockRunner":
        return self

    def __exit__(self, *error: Any) -> None:
        self.recording.__exit__(*error)  # an error ends the recording

    def __call__(self, index: int, block: Block, x: Tensor, layout: Layout, attention: AttentionFunction) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if index == 0 and self.recorded:
            self.recording.enter_context(comfy.model_prefetch.malloc_graph_scope(self.device))
        self._next(block)
        x = self._patched(index, block, x, layout, attention)
        if index == self.total - 1:
            self._next(None)  # gives the last block's prefetched weights back
            self.recording.close()
            self.network.has_run = True
        return x

    def _next(self, block: Block | None) -> None:
        """Take the next block's weights from the queue, and have those after it fetched."""
        scope = {"malloc_scope": "block"} if self.recorded else {}
        comfy.model_prefetch.prefetch_queue_pop(self.queue, self.device, block, **scope)

    def _patched(self, index: int, block: Block, x: Tensor, layout: Layout, attention: AttentionFunction) -> Tensor:
        name = ("double_block", index)
        self.options.update(block_index=index, total_blocks=self.total, block_type="double", block=name)
        patch = self.replace.get(name)
        overridden = "optimized_attention_override" in self.options
        if len(layout.clips) == 1 or not (patch or overridden):
            return self._run(block, x, layout, attention, patch)
        # Prompt and negative prompt are packed; what others patch in expects one at a time, and to be told which.
        conds = {name: self.options[name] for name in PER_COND if len(self.options.get(name, ())) == len(layout.clips)}
        parts = []
        for number, clip in enumerate(layout.clips):
            self.options.update({key: values[number : number + 1] for key, values in conds.items()})
            parts.append(self._run(block, x[:, clip.span], layout.alone(clip), attention, patch))
        self.options.update(conds)
        if patch is None and not torch.is_grad_enabled():
            return x  # each was written into its part
        return torch.cat(parts, 1)

    def _run(self, block: Block, x: Tensor, layout: Layout, attention: AttentionFunction, patch) -> Tensor:
        if patch is None:
            return block(x, layout, attention)

        def original_block(args: dict) -> dict:
            # A block writes into its input; a patch may want to compare input and output.
            return {"img": block(args["img"].clone(), layout, comfy_attention(args["transformer_options"]))}

        args = {"img": x, "layout": layout, "transformer_options": self.options}
        return patch(args, {"original_block": original_block})["img"]
