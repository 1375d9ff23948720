"""The text encoder: T5Gemma's encoder, a bidirectional Gemma-2.

    x = embedding * sqrt(hidden)
    x = x + norm(attention(norm(x)));  x = x + norm(mlp(norm(x)))        for every layer
    norm(x)                                                              [1, n, hidden]

Attention is grouped-query with rotary positions; even layers see a sliding window, odd ones everything.
Module names are those of the official checkpoint: encoder.layers.0.self_attn.q_proj.weight, ...
"""

import logging
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..nn.layers import RMSNorm
from ..nn.operations import Operations
from ..sizes import TEXT_TOKENS
from .config import TextEncoderConfig
from .prompt import check_text

REFUSED_ABOVE = 4096  # tokens: attention needs memory for the square of a prompt's length

log = logging.getLogger(__name__)


class Norm(RMSNorm):
    """The network's norm, given back in x's dtype. Starts as no change, for training from scratch."""

    def __init__(self, config: TextEncoderConfig, dtype=None, device=None):
        super().__init__(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype, device=device)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return super().forward(x, dtype or x.dtype)


def rotary_table(length: int, head_dim: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position * theta^(-2k / head_dim), [length, head_dim / 2], in like's dtype and place."""
    k = torch.arange(0, head_dim, 2, dtype=torch.float32, device=like.device)
    positions = torch.arange(length, dtype=torch.float32, device=like.device)
    angles = positions[:, None] * (1.0 / theta ** (k / head_dim))
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [..., n, head_dim], split in halves (a, b), to (a cos - b sin, b cos + a sin)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    """Grouped-query self-attention over the whole text. [B, n, hidden] -> [B, n, hidden]."""

    def __init__(self, config: TextEncoderConfig, operations: Operations, dtype=None, device=None):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self.scale = config.query_pre_attn_scalar**-0.5
        self.cap = config.attn_logit_softcapping if config.use_attn_logit_softcapping else None
        options = {"bias": False, "dtype": dtype, "device": device}
        hidden = config.hidden_size
        inner, kv_inner = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = operations.Linear(hidden, inner, **options)
        self.k_proj = operations.Linear(hidden, kv_inner, **options)
        self.v_proj = operations.Linear(hidden, kv_inner, **options)
        self.o_proj = operations.Linear(inner, hidden, **options)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)              # [B, heads, n, head_dim]

        q = rotate(split(self.q_proj(x)), cos, sin)
        k = rotate(split(self.k_proj(x)), cos, sin)
        v = split(self.v_proj(x))
        # A text is short: repeating the few key heads costs nothing, and every attention backend can do it.
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, dim=1) for y in (k, v))
        if self.cap is None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        else:
            y = self._capped(q, k, v, mask, self.cap)
        return self.o_proj(y.transpose(1, 2).flatten(2))                         # [B, n, heads * head_dim]

    def _capped(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cap: float) -> Tensor:
        scores = torch.tanh(q @ k.transpose(-1, -2) * self.scale / cap) * cap
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


class GatedMLP(nn.Module):
    """down(gelu(gate(x)) * up(x))."""

    def __init__(self, config: TextEncoderConfig, operations: Operations, dtype=None, device=None):
        super().__init__()
        options = {"bias": False, "dtype": dtype, "device": device}
        self.gate_proj = operations.Linear(config.hidden_size, config.intermediate_size, **options)
        self.up_proj = operations.Linear(config.hidden_size, config.intermediate_size, **options)
        self.down_proj = operations.Linear(config.intermediate_size, config.hidden_size, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class EncoderLayer(nn.Module):
    """Attention and MLP, each with a norm before and after."""

    def __init__(self, config: TextEncoderConfig, operations: Operations, dtype=None, device=None):
        super().__init__()

        def norm() -> RMSNorm:
            return Norm(config, dtype, device)

        self.self_attn = Attention(config, operations, dtype, device)
        self.pre_self_attn_layernorm, self.post_self_attn_layernorm = norm(), norm()
        self.mlp = GatedMLP(config, operations, dtype, device)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.post_self_attn_layernorm(self.self_attn(self.pre_self_attn_layernorm(x), cos, sin, mask))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class T5GemmaEncoder(nn.Module):
    """Token ids [B, n] -> last hidden state [B, n, hidden]."""

    def __init__(self, config: TextEncoderConfig, *, operations: Operations = nn, dtype=None, device=None):
        super().__init__()
        self.config = config
        self.embed_tokens = operations.Embedding(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = nn.ModuleList(
            EncoderLayer(config, operations, dtype, device) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config, dtype, device)

    def forward(self, ids: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return self.forward_many([ids], dtype)[0]

    def forward_many(self, texts: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
        """`forward` of several texts, each layer on all of them, so that its weights are brought in once for all."""
        states = [self._embed(ids, dtype) for ids in texts]
        tables = [self._tables(x) for x in states]
        for index, layer in enumerate(self.layers):
            slides = self.config.slides(index)
            for number, (cos, sin, window) in enumerate(tables):
                states[number] = layer(states[number], cos, sin, window if slides else None)
        return [self.norm(x) for x in states]

    def _embed(self, ids: Tensor, dtype: torch.dtype | None) -> Tensor:
        x = self.embed_tokens(ids)
        x = x if dtype is None else x.to(dtype)
        # The factor is rounded to the dtype (59.75 in bf16 for 3584), as it was when the model was trained.
        return x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype, device=x.device)

    def _tables(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """cos and sin of the rotary positions, and the mask [n, n] of sliding windows where the text is longer."""
        config, n = self.config, x.shape[1]
        window = None
        if n > config.sliding_window:
            position = torch.arange(n, device=x.device)
            window = (position[:, None] - position).abs() < config.sliding_window
        return *rotary_table(n, config.head_dim, config.rope_theta, x), window


class TextEncoder(nn.Module):
    """T5Gemma's encoder with its tokenizer: a prompt goes in, what the transformer wants comes out."""

    def __init__(self, config: TextEncoderConfig | Mapping | None = None, *, tokenizer=None,
                 operations: Operations = nn, dtype: torch.dtype | None = None,
                 device: torch.device | str | None = None):
        super().__init__()
        self.config = TextEncoderConfig.from_mapping(config)
        self.tokenizer = tokenizer
        self.compute_dtype: torch.dtype | None = None  # of forward where it is told none; None: the weights'
        self.encoder = T5GemmaEncoder(self.config, operations=operations, dtype=dtype, device=device)

    def forward(self, ids: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Token ids [1, n] (integers) -> last hidden state [1, n, hidden], in dtype (None: compute_dtype)."""
        return self.forward_many([ids], dtype)[0]

    def forward_many(self, texts: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
        """`forward` of several texts, bit by bit the same, with each layer's weights brought in once."""
        for ids in texts:
            if ids.ndim != 2 or ids.shape[1] == 0 or ids.is_floating_point():
                raise InputError(f"ids must be integers of shape [1, n] with n > 0, got {ids.dtype} of shape "
                                 f"{list(ids.shape)}.")
        return self.encoder.forward_many(texts, dtype or self.compute_dtype)

    def tokenize(self, text: str) -> Tensor:
        """A prompt's token ids [1, n], uncut. No BOS or EOS, whatever the tokenizer's template says.

        Raises InputError for an empty prompt, one of more than REFUSED_ABOVE tokens, without a tokenizer, or with
        one that is not the encoder's.
        """
        check_text(text)
        if self.tokenizer is None:
            raise InputError("the text encoder has no tokenizer; put T5Gemma's tokenizer.json beside the "
                             "weights, or name it.")
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > REFUSED_ABOVE:
            raise InputError(f"the prompt has {len(ids)} tokens, of which {TEXT_TOKENS} can be used; more than "
                             f"{REFUSED_ABOVE} are refused. Write a shorter one.")
        if max(ids, default=0) >= self.config.vocab_size:
            raise InputError(f"the tokenizer gives token {max(ids)}, but the text encoder knows only "
                             f"{self.config.vocab_size}; use the tokenizer.json made for this encoder.")
        return torch.tensor([ids], dtype=torch.long)

    def encode(self, text: str) -> Tensor:
        """A prompt -> [1, n, hidden] fp32, n <= 640 tokens; what is cut off is named in a warning."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[Tensor]:
        """`encode` of several prompts, with each layer's weights brought in once."""
        tokens = [self.tokenize(text) for text in texts]
        hidden = self.forward_many([ids.to(self.encoder.norm.weight.device) for ids in tokens])
        return [self.finish(states, ids) for states, ids in zip(hidden, tokens, strict=True)]

    def finish(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """What the transformer was trained on: rounded through fp16, cut at 640 tokens, fp32."""
        n = ids.shape[1]
        if n > TEXT_TOKENS:
            first_lost = ids[0, TEXT_TOKENS:TEXT_TOKENS + 16].tolist()
            words = self.tokenizer.decode(first_lost).strip() if self.tokenizer else "?"
            log.warning("The prompt has %d tokens, of which %d can be used: from %r on it is cut off.",
                        n, TEXT_TOKENS, words)
        return hidden[:, :TEXT_TOKENS].to(torch.float16).to(torch.float32)
