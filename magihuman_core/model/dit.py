"""MagiHuman's network: one stream of video, audio and text tokens, self-attention only (arXiv 2603.21986).

    latents, text -> embedders -> 40 blocks -> heads -> velocities of video and audio

Tokens stand in the order video | audio | text. The network is told no timestep. The first and last four blocks are a
sandwich: there each modality has an expert of its own, that is its own copy of every norm and linear layer, while
attention still joins all tokens. The blocks between have one expert, shared by all.

The residual stream is fp32 from end to end. Linear layers of the blocks and the attention compute in `compute_dtype`
(bf16 as released); embedders, heads, norms, rotary positions, activations and gates compute in fp32.
"""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..nn.elementwise import EAGER, Elementwise
from ..nn.layers import RMSNorm
from ..nn.operations import Operations, weights_held
from .attention import AttentionFunction, local_attention, sdpa
from .config import PATCH, DiTConfig
from .rope import RotaryBands
from .sequence import MODALITIES, Layout, Segments, make_layout, patchify, unpatchify

# run_block(index, block, x, layout, attention) -> x: the seam for block patches, prefetching and cancelling.
RunBlock = Callable[[int, "Block", Tensor, Layout, AttentionFunction], Tensor]
Pieces = Generator[tuple[slice, Tensor], None, None]  # tokens of the sequence, and what was computed for them

# Tokens that pass through a linear layer at once. The inner width of an MLP is many times the hidden one, so
# this bounds the memory of activations: at 1080p the whole sequence at once would take several GB. On a
# CPU a piece that stays in its cache is also the fastest (benchmarks/network.py).
PIECE = 4096
CPU_PIECE = 256
CPU_FUSED_PIECE = 2048  # where elementwise work is compiled: measured (docs/performance.md)


def tokens_at_once(device: str, fused: bool) -> int:
    """How many tokens pass through a linear layer at once on a kind of device, such as "cpu"."""
    if device != "cpu":
        return PIECE
    return CPU_FUSED_PIECE if fused else CPU_PIECE


class GatedAttention(nn.Module):
    """Grouped-query attention with one sigmoid gate for each token and head."""

    elementwise: Elementwise = EAGER

    def __init__(self, config: DiTConfig, compute_dtype: torch.dtype, *, operations: Operations, dtype, device):
        super().__init__()
        c = config
        self.heads, self.kv_heads, self.head_dim = c.heads, c.kv_heads, c.head_dim
        self.compute_dtype = compute_dtype
        self.pre_norm = RMSNorm(c.hidden, device=device)
        width = (c.heads + 2 * c.kv_heads) * c.head_dim
        self.linear_qkv = operations.Linear(c.hidden, width, bias=False, dtype=dtype, device=device)
        # The gate is stored as the last rows of linear_qkv; it is a layer of its own because 7208 is not a
        # multiple of 16, which fp8 matrix units want, and because it is worth its precision.
        self.linear_gate = operations.Linear(c.hidden, c.heads, bias=False, dtype=dtype, device=device)
        self.linear_proj = operations.Linear(c.heads * c.head_dim, c.hidden, bias=False, dtype=dtype, device=device)
        self.q_norm = RMSNorm(c.head_dim, device=device)
        self.k_norm = RMSNorm(c.head_dim, device=device)

    def project(self, x: Tensor, sin: Tensor, cos: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x fp32 [B, n, hidden] -> q [B, n, heads, d], k and v [B, n, kv_heads, d], gate [B, n, heads]."""
        h = self.pre_norm(x, self.compute_dtype)
        qkv = self.linear_qkv(h).unflatten(-1, (-1, self.head_dim))
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=-2)
        q = self.q_norm.rotated(q, sin, cos, self.compute_dtype)
        k = self.k_norm.rotated(k, sin, cos, self.compute_dtype)
        return q, k, v, self.linear_gate(h)

    def output(self, attended: Tensor, gate: Tensor) -> Tensor:
        """attended [B, n, heads, d], gate [B, n, heads] -> [B, n, hidden]."""
        return self.linear_proj(self.elementwise.gate(attended, gate, self.compute_dtype).flatten(2))


class MLP(nn.Module):
    """norm -> up -> GELU7 or SwiGLU7 -> down."""

    elementwise: Elementwise = EAGER

    def __init__(self, config: DiTConfig, gelu: bool, compute_dtype: torch.dtype, *, operations: Operations,
                 dtype, device):
        super().__init__()
        width = config.gelu_width if gelu else config.swiglu_width
        self.gelu = gelu
        self.compute_dtype = compute_dtype
        self.pre_norm = RMSNorm(config.hidden, device=device)
        up = width if gelu else 2 * width
        self.up_gate_proj = operations.Linear(config.hidden, up, bias=False, dtype=dtype, device=device)
        self.down_proj = operations.Linear(width, config.hidden, bias=False, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up_gate_proj(self.pre_norm(x, self.compute_dtype))
        activation = self.elementwise.gelu7 if self.gelu else self.elementwise.swiglu7
        return self.down_proj(activation(up, self.compute_dtype))


class Expert(nn.Module):
    """Every weight one token meets in a block."""

    def __init__(self, config: DiTConfig, index: int, compute_dtype: torch.dtype, **factory):
        super().__init__()
        self.attention = GatedAttention(config, compute_dtype, **factory)
        self.mlp = MLP(config, index in config.gelu_layers, compute_dtype, **factory)
        post_norm = index in config.post_norm_layers
        self.attn_post_norm = RMSNorm(config.hidden, device=factory["device"]) if post_norm else None
        self.mlp_post_norm = RMSNorm(config.hidden, device=factory["device"]) if post_norm else None

    def attention_output(self, attended: Tensor, gate: Tensor) -> Tensor:
        y = self.attention.output(attended, gate)
        return y if self.attn_post_norm is None else self.attn_post_norm(y, y.dtype)

    def mlp_output(self, x: Tensor) -> Tensor:
        y = self.mlp(x)
        return y if self.mlp_post_norm is None else self.mlp_post_norm(y)


class Block(nn.Module):
    """x + attention, then x + MLP; three experts in the sandwich, one elsewhere.

    Long sequences pass through a linear layer in pieces; its weight comes in once for all of them.
    """

    def __init__(self, config: DiTConfig, index: int, compute_dtype: torch.dtype, **factory):
        super().__init__()
        self.compute_dtype = compute_dtype
        self.by_modality = index in config.sandwich_layers
        names = MODALITIES if self.by_modality else ("shared",)
        self.experts = nn.ModuleDict({name: Expert(config, index, compute_dtype, **factory) for name in names})
        self.local_radius = config.local_radius if index in config.local_layers else None

    def forward(self, x: Tensor, layout: Layout, attention: AttentionFunction = sdpa) -> Tensor:
        """x: the residual stream, fp32 [B, N, hidden]. Where no gradient is wanted the result is written into x."""
        x = add(x, self.attention(x, layout, attention))
        return add(x, self.mlp(x, layout))

    def attention(self, x: Tensor, layout: Layout, attend: AttentionFunction) -> Pieces:
        """The attention of all tokens of a clip to all, or to those near in time, [B, n, hidden] of each piece."""
        q, k, v, gate = join(self._project(x, layout), layout.tokens)
        attended = layout.attend(q, k, v, partial(self._attend, attend))
        del q, k, v  # a generator keeps its variables while it waits
        whole = attended[0] if len(attended) == 1 else torch.cat(attended, 1)
        del attended
        for expert, spans in self._work(layout):
            with self._held(x, expert.attention.linear_proj):
                for span in spans:
                    yield span, expert.attention_output(whole[:, span], gate[:, span])

    def mlp(self, x: Tensor, layout: Layout) -> Pieces:
        """The MLP of each token, [B, n, hidden] of each piece."""
        for expert, spans in self._work(layout):
            with self._held(x, expert.mlp.up_gate_proj, expert.mlp.down_proj):
                for span in spans:
                    yield span, expert.mlp_output(x[:, span])

    def _project(self, x: Tensor, layout: Layout) -> Generator[tuple[slice, tuple[Tensor, ...]], None, None]:
        for expert, spans in self._work(layout):
            with self._held(x, expert.attention.linear_qkv, expert.attention.linear_gate):
                for span in spans:
                    yield span, expert.attention.project(x[:, span], layout.sin[span], layout.cos[span])

    def _attend(self, attend: AttentionFunction, q: Tensor, k: Tensor, v: Tensor, clip: Segments) -> Tensor:
        if self.local_radius is None:
            return attend(q, k, v)
        return local_attention(q, k, v, clip, self.local_radius, attend)

    def _work(self, layout: Layout) -> list[tuple[Expert, list[slice]]]:
        """Who computes which tokens."""
        pieces = layout.pieces(self.by_modality)
        return [(cast(Expert, self.experts[name]), spans) for name, spans in pieces.items()]

    def _held(self, x: Tensor, *layers: nn.Module) -> AbstractContextManager[None]:
        return weights_held(x.new_empty(0, dtype=self.compute_dtype), *layers)


def join(pieces: Generator[tuple[slice, tuple[Tensor, ...]], None, None], tokens: int) -> list[Tensor]:
    """Tensors [B, tokens, ...] of what is computed for some tokens at a time, in any order.

    Where no gradient is wanted each piece is written into its place at once, so that nothing is held twice.
    """
    if torch.is_grad_enabled():
        found = sorted(pieces, key=lambda piece: piece[0].start)
        return [torch.cat(parts, 1) for parts in zip(*(parts for _, parts in found), strict=True)]
    joined: list[Tensor] = []
    with closing(pieces):  # an error here would leave it waiting, with its weights held
        for span, parts in pieces:
            if span == slice(0, tokens):
                return list(parts)
            joined = joined or [part.new_empty(part.shape[0], tokens, *part.shape[2:]) for part in parts]
            for whole, part in zip(joined, parts, strict=True):
                whole[:, span] = part
    return joined


def add(x: Tensor, branch: Pieces) -> Tensor:
    """x + branch, which is computed piece by piece.

    Written into x where no gradient needs the old x, so that the residual stream is held once.
    """
    if torch.is_grad_enabled():
        return x + join(((span, (y,)) for span, y in branch), x.shape[1])[0]
    with closing(branch):
        for span, y in branch:
            x[:, span] += y
            del y  # before the next piece is computed
    return x


def tokens_of(video: Tensor, audio: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What goes into the embedders, fp32 [B, n, channels] of each modality, of what comes into the network."""
    return patchify(video.float()), audio.float().transpose(1, 2), text.float()


class Embedder(nn.Module):
    """The three fp32 embedders and the rotary frequencies."""

    def __init__(self, config: DiTConfig, *, operations: Operations, device):
        super().__init__()
        fp32 = {"dtype": torch.float32, "device": device}
        self.video_embedder = operations.Linear(config.video_channels * PATCH**2, config.hidden, **fp32)
        self.audio_embedder = operations.Linear(config.audio_channels, config.hidden, **fp32)
        self.text_embedder = operations.Linear(config.text_channels, config.hidden, **fp32)
        self.rope = RotaryBands(config.head_dim // 8, device=device)

    def forward(self, video: Tensor, audio: Tensor, text: Tensor) -> Tensor:
        """[B, n, channels] of each modality -> [B, N, hidden]."""
        return torch.cat([self.video_embedder(video), self.audio_embedder(audio), self.text_embedder(text)], 1)


class MagiHumanDiT(nn.Module):
    """The network.

    dtype: of the blocks' linear layers; compute_dtype: what these and the attention compute in, by default the same.
    operations: where layers come from; `torch.nn`, or a namespace like ComfyUI's.
    """

    elementwise: Elementwise = EAGER

    def __init__(self, config: DiTConfig, *, operations: Operations = nn, dtype: torch.dtype = torch.float32,
                 device: torch.device | str | None = None, compute_dtype: torch.dtype | None = None):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype or dtype
        self.piece: int | None = None  # tokens that pass through a linear layer at once; None: what suits the device
        fp32 = {"dtype": torch.float32, "device": device}
        factory = {"operations": operations, "dtype": dtype, "device": device}
        self.adapter = Embedder(config, operations=operations, device=device)  # checkpoints call it so
        self.blocks = nn.ModuleList([Block(config, i, self.compute_dtype, **factory) for i in range(config.layers)])
        self.final_norm_video = RMSNorm(config.hidden, device=device)
        self.final_norm_audio = RMSNorm(config.hidden, device=device)
        self.final_linear_video = operations.Linear(config.hidden, config.video_channels * PATCH**2, bias=False, **fp32)
        self.final_linear_audio = operations.Linear(config.hidden, config.audio_channels, bias=False, **fp32)
        self._layouts: dict[tuple, Layout] = {}

    def layout(self, *sizes: tuple[tuple[int, int, int], int, int], device: torch.device | None = None) -> Layout:
        """The layout for clips of these sizes: of each the latent's (T, H, W), audio and text tokens.

        The last two are kept, since a sampler asks for the same at each step.
        """
        bands = self.adapter.rope.bands
        device = device or bands.device
        piece = self.piece or tokens_at_once(device.type, self.elementwise is not EAGER)
        # Tables made in inference mode cannot be used where gradients are wanted, so they are kept apart.
        key = (sizes, piece, device, torch.is_inference_mode_enabled())
        if key not in self._layouts:
            for old in list(self._layouts)[:-1]:
                del self._layouts[old]
            self._layouts[key] = make_layout(sizes, self.config.positions, bands.to(device), piece)
        return self._layouts[key]

    def forward(self, video: Tensor, audio: Tensor, text: Tensor, *, run_block: RunBlock | None = None,
                attention: AttentionFunction = sdpa) -> tuple[Tensor, Tensor]:
        """Flow velocities (noise - clean) of both streams.

        video: [B, C, T, H, W] normalized latent, H and W even; audio: [B, a, A]; text: [B, n, d], not
        padded. Returns fp32 (video, audio) of the same shapes. Batch members share their text length.
        Raises InputError for other shapes.
        """
        return self.forward_many([(video, audio, text)], run_block=run_block, attention=attention)[0]

    def forward_many(self, inputs: list[tuple[Tensor, Tensor, Tensor]], *, run_block: RunBlock | None = None,
                     attention: AttentionFunction = sdpa) -> list[tuple[Tensor, Tensor]]:
        """`forward` of several inputs of one batch size, packed, so that weights are brought in once for all."""
        run_block = run_block or (lambda index, block, x, layout, attention: block(x, layout, attention))
        sizes = []
        for video, audio, text in inputs:
            self._check(video, audio, text)
            _, _, T, H, W = video.shape
            sizes.append(((T, H, W), audio.shape[2], text.shape[1]))
        layout = self.layout(*sizes, device=inputs[0][0].device)
        x = self._embed([tokens_of(*each) for each in inputs], layout)
        for index, block in enumerate(self.blocks):
            x = run_block(index, cast(Block, block), x, layout, attention)
        return [(unpatchify(video, size), audio.transpose(1, 2))
                for (size, _, _), (video, audio) in zip(sizes, self._heads(x, layout), strict=True)]

    def _embed(self, clips: list[tuple[Tensor, Tensor, Tensor]], layout: Layout) -> Tensor:
        """Tokens of each clip's modalities, [B, n, channels] each -> the residual stream."""
        embedded = [self.adapter(*clip) for clip in clips]
        return embedded[0] if len(embedded) == 1 else torch.cat(embedded, 1)

    def _heads(self, x: Tensor, layout: Layout) -> list[tuple[Tensor, Tensor]]:
        """Video and audio tokens of each clip, [B, n, channels], from the residual stream."""
        spans = [span for _, span in layout.spans(by_modality=True)]
        return [(self.final_linear_video(self.final_norm_video(x[:, video])),
                 self.final_linear_audio(self.final_norm_audio(x[:, audio])))
                for video, audio in zip(spans[::3], spans[1::3], strict=True)]

    def _check(self, video: Tensor, audio: Tensor, text: Tensor) -> None:
        c = self.config
        for name, tensor, dims, channels, axis in (("video", video, 5, c.video_channels, 1),
                                                   ("audio", audio, 3, c.audio_channels, 1),
                                                   ("text", text, 3, c.text_channels, 2)):
            if tensor.ndim != dims or tensor.shape[axis] != channels:
                raise InputError(f"{name} has shape {tuple(tensor.shape)}, but this network takes {dims} axes with "
                                 f"{channels} channels on axis {axis}; check that latent and text come from "
                                 "MagiHuman's own VAE and text encoder.")
        if video.shape[3] % PATCH or video.shape[4] % PATCH:
            raise InputError(f"video latent is {video.shape[3]} x {video.shape[4]}, expected even height and width: "
                             "choose an image size in multiples of 32 pixels.")
        if text.shape[1] < (2 if c.positions == "v1" else 1):
            raise InputError(f"text has {text.shape[1]} tokens, too few: write a longer prompt.")
        if c.positions == "v1" and audio.shape[2] == 1 and video.shape[2] > 1:
            raise InputError(f"audio has 1 token for {video.shape[2]} latent frames, too few: give the whole audio.")
