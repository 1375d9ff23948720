"""MagiHuman's network: one stream of video, audio and text tokens, self-attention only (SPEC 2).

    latents, text -> embedders -> 40 blocks -> heads -> velocities of video and audio

Tokens stand in the order video | audio | text. The network is told no timestep. The first and last
four blocks are a sandwich: there each modality has an expert of its own, that is its own copy of
every norm and linear layer, while attention still joins all tokens. The blocks between have one
expert, shared by all.

The residual stream is fp32 from end to end. Linear layers of the blocks and the attention compute
in `dtype` (bf16 as released); embedders, heads, norms, rotary positions, activations and gates
compute in fp32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..checkpoint.assign import assign_weights
from ..checkpoint.quantize import quantized_layers, stored_dtype
from ..checkpoint.quantized import EIGHT_BITS
from ..errors import InputError
from ..nn.layers import RMSNorm, gelu7, swiglu7
from ..nn.quantized_linear import compute_dtype_of
from ..nn.quantized_linear import operations as plain_operations
from ..runtime.streaming import BlockStreamer, choose_streamed, is_streamed, stream_blocks
from ..weights.dit_keys import split_official
from ..weights.open import open_checkpoint
from ..weights.precision import keep_fp32, may_quantize
from ..weights.recognize import explain_shape_errors
from .attention import AttentionFunction, local_attention, sdpa
from .config import PATCH, DiTConfig
from .rope import apply_rotary, rope_bands
from .sequence import MODALITIES, Layout, make_layout, patchify, unpatchify

# run_block(index, block, x, layout, attention) -> x: the seam for streaming weights, patches and cancelling.
RunBlock = Callable[[int, "Block", Tensor, Layout, AttentionFunction], Tensor]

# Tokens that pass through a projection or MLP at once. The inner width is many times the hidden one, so
# this bounds the memory of activations: at 1080p the whole sequence at once would take several GB. On a
# CPU a piece that stays in its cache is also the fastest (benchmarks/network.py); not so with weights in
# 8 bits, which are decoded once for each piece.
CHUNK = 4096
CPU_CHUNK = 256

log = logging.getLogger(__name__)


class GatedAttention(nn.Module):
    """Grouped-query attention with one sigmoid gate for each token and head."""

    def __init__(self, config: DiTConfig, compute_dtype: torch.dtype, *, operations, dtype, device):
        super().__init__()
        c = config
        self.heads, self.kv_heads, self.head_dim = c.heads, c.kv_heads, c.head_dim
        self.compute_dtype = compute_dtype
        self.pre_norm = RMSNorm(c.hidden, device=device)
        self.linear_qkv = operations.Linear(
            c.hidden, (c.heads + 2 * c.kv_heads) * c.head_dim, bias=False, dtype=dtype, device=device
        )
        # The gate is stored as the last rows of linear_qkv; it is a layer of its own because 7208 rows
        # do not divide by 16, which fp8 matrix units want, and because it is worth its precision.
        gate_dtype = compute_dtype if dtype in EIGHT_BITS else dtype
        self.linear_gate = operations.Linear(c.hidden, c.heads, bias=False, dtype=gate_dtype, device=device)
        self.linear_proj = operations.Linear(c.heads * c.head_dim, c.hidden, bias=False, dtype=dtype, device=device)
        self.q_norm = RMSNorm(c.head_dim, device=device)
        self.k_norm = RMSNorm(c.head_dim, device=device)

    def project(self, x: Tensor, sin: Tensor, cos: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x fp32 [B, n, hidden] -> q [B, n, heads, d], k and v [B, n, kv_heads, d], gate fp32 [B, n, heads]."""
        h = self.pre_norm(x).to(self.compute_dtype)
        qkv = self.linear_qkv(h).unflatten(-1, (-1, self.head_dim))
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=-2)
        q = apply_rotary(self.q_norm(q), sin, cos).to(self.compute_dtype)
        k = apply_rotary(self.k_norm(k), sin, cos).to(self.compute_dtype)
        return q, k, v, self.linear_gate(h).float()

    def output(self, attended: Tensor, gate: Tensor) -> Tensor:
        """attended [B, n, heads, d], gate [B, n, heads] -> [B, n, hidden]."""
        gated = attended.float() * torch.sigmoid(gate).unsqueeze(-1)
        return self.linear_proj(gated.to(self.compute_dtype).flatten(2))


class MLP(nn.Module):
    """norm -> up -> GELU7 or SwiGLU7 -> down."""

    def __init__(self, config: DiTConfig, gelu: bool, compute_dtype: torch.dtype, *, operations, dtype, device):
        super().__init__()
        width = config.gelu_width if gelu else config.swiglu_width
        self.activation = gelu7 if gelu else swiglu7
        self.compute_dtype = compute_dtype
        self.pre_norm = RMSNorm(config.hidden, device=device)
        self.up_gate_proj = operations.Linear(
            config.hidden, width if gelu else 2 * width, bias=False, dtype=dtype, device=device
        )
        self.down_proj = operations.Linear(width, config.hidden, bias=False, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up_gate_proj(self.pre_norm(x).to(self.compute_dtype))
        return self.down_proj(self.activation(up).to(self.compute_dtype))


class Expert(nn.Module):
    """Every weight one token meets in a block."""

    def __init__(self, config: DiTConfig, index: int, compute_dtype: torch.dtype, **factory):
        super().__init__()
        self.attention = GatedAttention(config, compute_dtype, **factory)
        self.mlp = MLP(config, index in config.gelu_layers, compute_dtype, **factory)
        if index in config.post_norm_layers:
            self.attn_post_norm = RMSNorm(config.hidden, device=factory["device"])
            self.mlp_post_norm = RMSNorm(config.hidden, device=factory["device"])
        else:
            self.attn_post_norm = self.mlp_post_norm = None

    def attention_branch(self, attended: Tensor, gate: Tensor) -> Tensor:
        y = self.attention.output(attended, gate)
        return y if self.attn_post_norm is None else self.attn_post_norm(y).to(y.dtype)

    def mlp_branch(self, x: Tensor) -> Tensor:
        y = self.mlp(x)
        return y if self.mlp_post_norm is None else self.mlp_post_norm(y)


class Block(nn.Module):
    """x + attention, then x + MLP; three experts in the sandwich, one elsewhere."""

    def __init__(self, config: DiTConfig, index: int, compute_dtype: torch.dtype, **factory):
        super().__init__()
        names = MODALITIES if index in config.sandwich_layers else ("shared",)
        self.experts = nn.ModuleDict({name: Expert(config, index, compute_dtype, **factory) for name in names})
        self.local_radius = config.local_radius if index in config.local_layers else None
        self.chunk: int | None = None  # tokens at once; None: what suits the device
        self.quantized = factory["dtype"] in EIGHT_BITS

    def forward(self, x: Tensor, layout: Layout, attention: AttentionFunction = sdpa) -> Tensor:
        """x: fp32 [B, N, hidden]. Where no gradient is wanted the result is written into x."""
        limit = self.chunk or (CPU_CHUNK if x.device.type == "cpu" and not self.quantized else CHUNK)
        pieces = [(self.experts[name], rows) for name, rows in layout.pieces(len(self.experts) > 1, limit)]

        parts = [e.attention.project(x[:, rows], layout.sin[rows], layout.cos[rows]) for e, rows in pieces]
        q, k, v, gate = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        del parts
        if self.local_radius is None:
            attended = attention(q, k, v)
        else:
            attended = local_attention(q, k, v, layout, self.local_radius, attention)
        del q, k, v
        x = add_rows(x, pieces, lambda e, rows: e.attention_branch(attended[:, rows], gate[:, rows]))
        return add_rows(x, pieces, lambda e, rows: e.mlp_branch(x[:, rows]))


def add_rows(x: Tensor, pieces: list[tuple[Expert, slice]], branch: Callable[[Expert, slice], Tensor]) -> Tensor:
    """x + branch, piece by piece; in place where no gradient needs the old x, so that it is held once."""
    if torch.is_grad_enabled():
        return x + torch.cat([branch(expert, rows) for expert, rows in pieces], 1)
    for expert, rows in pieces:
        x[:, rows] += branch(expert, rows)
    return x


class Adapter(nn.Module):
    """The three fp32 embedders and the rotary frequencies."""

    def __init__(self, config: DiTConfig, *, operations, device):
        super().__init__()
        fp32 = {"dtype": torch.float32, "device": device}
        self.video_embedder = operations.Linear(config.video_channels * PATCH**2, config.hidden, **fp32)
        self.audio_embedder = operations.Linear(config.audio_channels, config.hidden, **fp32)
        self.text_embedder = operations.Linear(config.text_channels, config.hidden, **fp32)
        self.rope = nn.Module()
        self.rope.register_buffer("bands", rope_bands(config.rope_bands, device=device))

    def forward(self, video: Tensor, audio: Tensor, text: Tensor) -> Tensor:
        """[B, n, channels] of each modality -> [B, N, hidden]."""
        return torch.cat([self.video_embedder(video), self.audio_embedder(audio), self.text_embedder(text)], 1)


class MagiHumanDiT(nn.Module):
    """The network. `compute_dtype` is what linear layers of the blocks and the attention compute in;
    `dtype` is how the blocks' weights are stored (by default the same, with 8-bit ones bf16)."""

    def __init__(
        self,
        config: DiTConfig,
        *,
        operations=plain_operations,
        dtype: torch.dtype = torch.float32,
        device=None,
        compute_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.config = config
        compute_dtype = compute_dtype or compute_dtype_of(dtype)
        fp32 = {"dtype": torch.float32, "device": device}
        factory = {"operations": operations, "dtype": dtype, "device": device}
        self.adapter = Adapter(config, operations=operations, device=device)
        self.blocks = nn.ModuleList([Block(config, i, compute_dtype, **factory) for i in range(config.layers)])
        self.final_norm_video = RMSNorm(config.hidden, device=device)
        self.final_norm_audio = RMSNorm(config.hidden, device=device)
        self.final_linear_video = operations.Linear(config.hidden, config.video_channels * PATCH**2, bias=False, **fp32)
        self.final_linear_audio = operations.Linear(config.hidden, config.audio_channels, bias=False, **fp32)
        self.compute_dtype = compute_dtype
        self.streamer: BlockStreamer | None = None  # where not all blocks are resident
        self._layouts: dict[tuple, Layout] = {}

    def layout(self, latent: tuple[int, int, int], audio: int, text: int) -> Layout:
        """The layout for these sizes; the last two are kept, since a sampler asks for the same at each step,
        with guidance for those of the prompt and of the negative prompt."""
        bands = self.adapter.rope.bands
        key = (latent, audio, text, bands.device, torch.is_inference_mode_enabled())
        if key not in self._layouts:
            for old in list(self._layouts)[:-1]:
                del self._layouts[old]
            self._layouts[key] = make_layout(latent, audio, text, self.config.positions, bands)
        return self._layouts[key]

    def forward(
        self,
        video: Tensor,
        audio: Tensor,
        text: Tensor,
        *,
        run_block: RunBlock | None = None,
        attention: AttentionFunction = sdpa,
    ) -> tuple[Tensor, Tensor]:
        """Flow velocities (noise - clean) of both streams.

        video: [B, C, T, H, W] normalized latent, H and W even; audio: [B, a, A]; text: [B, n, d], not
        padded. Returns fp32 (video, audio) of the same shapes. Batch members share their text length.
        """
        return self.forward_many([(video, audio, text)], run_block=run_block, attention=attention)[0]

    def forward_many(
        self,
        inputs: list[tuple[Tensor, Tensor, Tensor]],
        *,
        run_block: RunBlock | None = None,
        attention: AttentionFunction = sdpa,
    ) -> list[tuple[Tensor, Tensor]]:
        """`forward` of several inputs, block by block, so that streamed weights are fetched once for all."""
        run_block = run_block or call_block
        states = []
        for video, audio, text in inputs:
            self._check(video, audio, text)
            layout = self.layout(tuple(video.shape[2:]), audio.shape[2], text.shape[1])
            x = self.adapter(patchify(video.float()), audio.float().transpose(1, 2), text.float())
            states.append((x, layout))
        for index, block in enumerate(self.blocks):
            if self.streamer is not None:
                self.streamer.fetch(index)
            states = [(run_block(index, block, x, layout, attention), layout) for x, layout in states]
        return [self._head(x, layout, video.shape) for (x, layout), (video, _, _) in zip(states, inputs, strict=True)]

    def _head(self, x: Tensor, layout: Layout, video_shape: torch.Size) -> tuple[Tensor, Tensor]:
        end = layout.video + layout.audio
        video = self.final_linear_video(self.final_norm_video(x[:, : layout.video]))
        audio = self.final_linear_audio(self.final_norm_audio(x[:, layout.video : end]))
        return unpatchify(video, tuple(video_shape[2:])), audio.transpose(1, 2)

    def _check(self, video: Tensor, audio: Tensor, text: Tensor) -> None:
        c = self.config
        for name, tensor, dims, channels, axis in (
            ("video", video, 5, c.video_channels, 1),
            ("audio", audio, 3, c.audio_channels, 1),
            ("text", text, 3, c.text_channels, 2),
        ):
            if tensor.ndim != dims or tensor.shape[axis] != channels:
                raise InputError(
                    f"{name} has shape {tuple(tensor.shape)}, but this network takes {dims} axes with {channels} "
                    f"channels on axis {axis}; check that latent and text come from MagiHuman's own VAE and "
                    "text encoder."
                )
        if video.shape[3] % PATCH or video.shape[4] % PATCH:
            raise InputError(
                f"video latent is {video.shape[3]} x {video.shape[4]}, expected even height and width: "
                "choose a picture size in multiples of 32 pixels."
            )
        if text.shape[1] < (2 if c.positions == "v1" else 1):
            raise InputError(f"text has {text.shape[1]} tokens, too few: write a longer prompt.")
        if c.positions == "v1" and audio.shape[2] == 1 and video.shape[2] > 1:
            raise InputError(f"audio has 1 token for {video.shape[2]} latent frames, too few: give the whole sound.")


def call_block(index: int, block: Block, x: Tensor, layout: Layout, attention: AttentionFunction) -> Tensor:
    """The plain way to run a block."""
    return block(x, layout, attention)


def load_dit(
    source,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    operations=plain_operations,
    compute_dtype: torch.dtype | None = None,
    resident_blocks: int | None = None,
    stream_from: str | None = None,
    **overrides,
) -> MagiHumanDiT:
    """Build the network that a checkpoint holds, at whatever size, and fill it.

    source: a file, folder, index file or mapping of tensors in any layout. dtype: what blocks are stored and
    computed in, torch.bfloat16 (default, as released) or torch.float32; or torch.float8_e4m3fn, float8_e5m2 or
    int8, which they are only stored in (see quantized_linear.py; taken over from the file where it has them so)
    and computed in compute_dtype, by default bf16. Embedders, heads and norms are fp32 in any case.
    overrides: fields of DiTConfig that no checkpoint records: positions ("v1" for super-resolution), local_layers
    and local_radius.
    resident_blocks: how many blocks stay in memory, None: all. The others are brought in when their turn
    comes (see streaming.py; for inference only), from stream_from: "file", or "memory" (read once, and kept in
    main memory); None: memory on an accelerator, where there is enough.
    Raises CheckpointError when the source is no MagiHuman network or damaged.
    """
    checkpoint = open_checkpoint(source, "network")
    with explain_shape_errors(checkpoint.name, "network"):
        config = DiTConfig.from_state_dict(checkpoint, **overrides)
        dtype = dtype or torch.bfloat16
        dit = MagiHumanDiT(config, operations=operations, dtype=dtype, compute_dtype=compute_dtype, device="meta")
        official = split_official(checkpoint, config)
        tensors = quantized_layers(official, dtype, may_quantize)
    streamed = choose_streamed(dit.blocks, resident_blocks)
    assign_weights(
        dit,
        tensors,
        dtype=dit.compute_dtype,
        device=device,
        name=checkpoint.name,
        keep_fp32=keep_fp32,
        skip=lambda key: is_streamed(key, streamed),
    )
    if streamed:
        dit.streamer = stream_blocks(dit.blocks, tensors, streamed, device, stream_from)
        rounds = dtype in EIGHT_BITS and stored_dtype(official, may_quantize) != dtype
        if rounds and not dit.streamer.in_memory:
            log.warning("%s: is not stored in %s, so blocks that stream from it are rounded anew at each step. Convert "
                        "it first (magihuman convert), or stream from memory.", checkpoint.name, str(dtype)[6:])
    return dit.eval()
