"""T5Gemma's encoder as a CLIP, with its own tokenizer.

ComfyUI's detection takes T5Gemma-9B for a smaller relative and would build that, so the core's encoder is
loaded and wrapped here; core's CLIP Text Encode and LoRA loaders work with it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor, nn

from ...magihuman_core.checkpoint.assign import check_tensors
from ...magihuman_core.errors import CheckpointError, InputError
from ...magihuman_core.loading.text_encoder import load_text_encoder, open_text_encoder
from ...magihuman_core.sizes import TEXT_TOKENS
from ...magihuman_core.text.encoder import TextEncoder
from ...magihuman_core.text.script import Segment
from ...magihuman_core.weights.comfyui_saved import CONFIG, TOKENIZER, text_tensors
from ...magihuman_core.weights.precision import may_quantize
from . import weights
from .conds import SCRIPT, Script
from .ops import Operations, quantized_operations

NAME = "t5gemma9b"
NO_TEXT = 2  # tokens that stand for an empty text; the super-resolution network's positions need two


class Tokenizer:
    """A text to tokens in ComfyUI's form, {NAME: [[(id, weight), ...]]}. Parentheses mean nothing special."""

    def __init__(self, encoder: TextEncoder):
        self.encoder = encoder

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_) -> dict:
        ids = self.encoder.tokenize(text)[0].tolist() if text.strip() else [0] * NO_TEXT
        word = (0,) if return_word_ids else ()
        return {NAME: [[(token, 1.0, *word) for token in ids]]}

    def untokenize(self, pairs) -> list:
        return [(pair, self.decode([pair[0]])) for pair in pairs]

    def decode(self, token_ids, skip_special_tokens: bool = True) -> str:
        return self.encoder.tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def state_dict(self) -> dict:
        """What core's save nodes write beside the weights: all that loading the file again needs."""
        config = {"model_type": "t5gemma", **asdict(self.encoder.config)}
        return text_tensors({TOKENIZER: self.encoder.tokenizer.to_str(), CONFIG: json.dumps(config)})


class ClipModel(nn.Module):
    """What comfy.sd.CLIP runs."""

    def __init__(self, encoder: TextEncoder, compute_dtype: torch.dtype, dtype=None, device=None, model_options=None):
        super().__init__()
        self.transformer = encoder
        self.compute_dtype = compute_dtype
        self.dtypes = {dtype}
        self.execution_device: torch.device | None = None

    def set_clip_options(self, options: dict) -> None:
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self) -> None:
        self.execution_device = None

    def memory_estimation_function(self, tokens: dict, device=None) -> int:
        """Bytes of activations: a layer's widest tensors, and the largest weight cast to compute in."""
        # Without tokens, as where weights are only to be saved, the longest text counts.
        config, count = self.transformer.config, max(map(len, tokens.get(NAME) or [range(TEXT_TOKENS)]))
        widest = 3 * config.intermediate_size + 6 * config.hidden_size
        cast = 3 * config.intermediate_size * config.hidden_size
        return (count * widest + cast) * self.compute_dtype.itemsize

    def encode_token_weights(self, tokens: dict) -> tuple[Tensor, None]:
        """Tokens -> ([B, n, hidden] fp32, no pooled output)."""
        ids = torch.tensor([[token[0] for token in row] for row in tokens[NAME]], dtype=torch.long)
        device = self.execution_device or self.transformer.encoder.norm.weight.device
        hidden = self.transformer(ids.to(device), self.compute_dtype)
        return self.transformer.finish(hidden, ids).to(comfy.model_management.intermediate_device()), None

    def load_sd(self, sd):
        return [], []  # the encoder comes loaded


def load_clip(path: str | Path, tokenizer: str | Path | None, dtype: torch.dtype | None = None,
              disable_dynamic=False) -> comfy.sd.CLIP:
    """A CLIP from T5Gemma's weights of any size.

    tokenizer: tokenizer.json; None: the one in or beside the weights. dtype: how weights are kept; None: in 8 bits
    where the file has them so, else bfloat16 where the device computes in it, else as they are stored: a cast to
    float32 as each layer runs costs little, and twice the memory much. Raises CheckpointError and InputError.
    """
    mm = comfy.model_management
    device = mm.text_encoder_device()
    compute = torch.bfloat16 if mm.should_use_bf16(device) else torch.float32
    source = path, tokenizer, dtype
    tensors, config, tokenizer = open_text_encoder(path, tokenizer)
    if tokenizer is None:
        raise CheckpointError(f"{path}: there is no tokenizer.json beside the weights. Put T5Gemma's there, or "
                              "choose it as tokenizer.")
    quantize = None if dtype is None else weights.BY_DTYPE.get(dtype)
    quantized = weights.formats(tensors, may_quantize, quantize) if dtype is None or quantize else {}
    if quantized:
        check_tensors(tensors, TextEncoder(config, device="meta").state_dict(), tensors.name)
        encoder = TextEncoder(config, tokenizer=tokenizer, operations=quantized_operations(compute, device),
                              dtype=compute)  # fmt: skip
        encoder.load_state_dict(weights.state_dict(tensors, compute, quantized, fast=False), strict=False, assign=True)
    else:
        kept = dtype or (compute if compute == torch.bfloat16 else weights.main_dtype(tensors))
        encoder = load_text_encoder(tensors, tokenizer, config, dtype=kept, operations=Operations)
    encoder.requires_grad_(False)
    parameters = sum(p.numel() for p in encoder.parameters())

    class Target:
        params = {"encoder": encoder, "compute_dtype": compute}
        clip = ClipModel

        @staticmethod
        def tokenizer(**_):
            return Tokenizer(encoder)

    clip = comfy.sd.CLIP(Target, parameters=parameters, model_options={"dtype": dtype or compute},
                         disable_dynamic=disable_dynamic)
    clip.patcher.cached_patcher_init = (load_patcher, source)
    return clip


def load_patcher(path: str | Path, tokenizer: str | Path | None, dtype: torch.dtype | None,
                 disable_dynamic=False) -> comfy.model_patcher.ModelPatcher:
    """The patcher alone, loaded anew, as ComfyUI asks for it: without dynamic memory, or for another device."""
    return load_clip(path, tokenizer, dtype, disable_dynamic).patcher


def encode_text(clip: comfy.sd.CLIP, text: str) -> list:
    """CONDITIONING of a text. Raises InputError for a CLIP that is not MagiHuman's."""
    tokens = clip.tokenize(text)
    if NAME not in tokens:
        raise InputError("The CLIP is another model's text encoder: connect one from Load MagiHuman Text Encoder.")
    return clip.encode_from_tokens_scheduled(tokens)


def encode_script(clip: comfy.sd.CLIP, segments: Sequence[Segment]) -> list:
    """CONDITIONING of a script: the first part's text, which carries the others along."""
    encoded = [encode_text(clip, segment.prompt) for segment in segments]
    return [[entries[0][0], {**entries[0][1], SCRIPT: Script(tuple(segments), tuple(text for text, _ in entries))}]
            for entries in zip(*encoded, strict=True)]
