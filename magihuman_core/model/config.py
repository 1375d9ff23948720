"""The network's architecture as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError, InputError
from ..recipes import BASE, SR_1080P

PATCH = 2  # a video token covers 1 x 2 x 2 latent pixels


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a MagiHuman network and the two choices no checkpoint records.

    `positions` ("v2": base and distilled, "v1": super-resolution) and the local attention
    (`local_layers`, `local_radius` in latent frames) leave no trace in keys or shapes, so they
    come from the user or from the role of the file.
    """

    layers: int
    hidden: int
    head_dim: int
    heads: int
    kv_heads: int
    video_channels: int  # of the latent, before patching
    audio_channels: int
    text_channels: int
    gelu_width: int  # inner width of GELU7 layers (0 where there are none)
    swiglu_width: int  # inner width of SwiGLU7 layers, after gating (0 where there are none)
    sandwich_layers: tuple[int, ...]
    gelu_layers: tuple[int, ...]
    post_norm_layers: tuple[int, ...] = ()
    positions: str = BASE.positions
    local_layers: tuple[int, ...] = ()
    local_radius: int = SR_1080P.local_radius

    def __post_init__(self):
        if self.positions not in ("v1", "v2"):
            raise InputError(f'positions is {self.positions!r}, expected "v1" or "v2".')
        if self.local_radius < 0:
            raise InputError(f"local_radius is {self.local_radius}, expected a number of latent frames >= 0.")
        if self.heads % self.kv_heads:
            raise InputError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly.")
        object.__setattr__(self, "local_layers", tuple(self.local_layers))

    @classmethod
    def from_state_dict(cls, sd: Mapping[str, Any], **overrides) -> DiTConfig:
        """Read every size from official keys and shapes.

        sd: official keys -> anything with a `.shape`, or a checkpoint with `.shape(key)`.
        overrides: fields to set instead, in particular positions, local_layers and local_radius.
        """
        ask = getattr(sd, "shape", None)  # a checkpoint tells shapes without reading tensors
        shape_of = ask if callable(ask) else lambda key: sd[key].shape

        def shape(key: str) -> tuple[int, ...]:
            if key not in sd:
                name = getattr(sd, "name", "The checkpoint")
                raise CheckpointError(f"{name} has no tensor {key}: it is not a MagiHuman network.")
            return tuple(shape_of(key))

        hidden, video_in = shape("adapter.video_embedder.weight")
        audio_in = shape("adapter.audio_embedder.weight")[1]
        text_in = shape("adapter.text_embedder.weight")[1]
        layers = 1 + max((int(k.split(".")[2]) for k in sd if k.startswith("block.layers.")), default=-1)

        sandwich, gelu, post_norm = [], [], []
        widths = {True: 0, False: 0}
        for i in range(layers):
            p = f"block.layers.{i}."
            copies = shape(p + "attention.pre_norm.weight")[0] // hidden
            if copies == 3:
                sandwich.append(i)
            elif copies != 1:
                raise CheckpointError(f"{p}attention.pre_norm.weight has {copies} x {hidden} values, expected 1 x, or "
                                      "3 x (one for each modality).")
            width = shape(p + "mlp.down_proj.weight")[1]
            is_gelu = shape(p + "mlp.up_gate_proj.weight")[0] // copies == width
            widths[is_gelu] = width
            if is_gelu:
                gelu.append(i)
            if p + "attn_post_norm.weight" in sd:
                post_norm.append(i)
        first = "block.layers.0.attention."
        copies = 3 if 0 in sandwich else 1
        head_dim = shape(first + "q_norm.weight")[0] // copies
        heads = shape(first + "linear_proj.weight")[1] // head_dim
        kv_heads = (shape(first + "linear_qkv.weight")[0] // copies - heads * (head_dim + 1)) // (2 * head_dim)
        sizes = {"layers": layers, "hidden": hidden, "head_dim": head_dim, "heads": heads, "kv_heads": kv_heads,
                 "video_channels": video_in // PATCH**2, "audio_channels": audio_in, "text_channels": text_in,
                 "gelu_width": widths[True], "swiglu_width": widths[False], "sandwich_layers": tuple(sandwich),
                 "gelu_layers": tuple(gelu), "post_norm_layers": tuple(post_norm)}
        return cls(**{**sizes, **overrides})


RELEASED = DiTConfig(layers=40, hidden=5120, head_dim=128, heads=40, kv_heads=8, video_channels=48, audio_channels=64,
                     text_channels=3584, gelu_width=20480, swiglu_width=13652,
                     sandwich_layers=(0, 1, 2, 3, 36, 37, 38, 39), gelu_layers=(0, 1, 2, 3))
