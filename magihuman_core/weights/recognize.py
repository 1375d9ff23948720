"""What a checkpoint is, told from its names, shapes and metadata alone. No tensor is read."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..checkpoint.checkpoint import Checkpoint, as_checkpoint
from ..checkpoint.quantized import COMFY_TABLE, SCALES
from ..errors import CheckpointError, InputError
from .diffusers_names import MARKS
from .lora_names import ENDINGS, SPELLINGS
from .roles import find_role


class Kind(NamedTuple):
    """A kind of weights: a key pattern that only it has, its name in a sentence, and what to choose it as."""

    pattern: str
    what: str
    use: str


# The order matters: a LoRA's keys contain those of the layers it changes.
KINDS = {
    # Of the spellings that are applied "alpha" alone tells nothing: the audio VAE has such, too.
    "lora": Kind(rf"[._]lora_(A|B|up|down)\b|({'|'.join(map(re.escape, sorted({*ENDINGS} - {*SPELLINGS['alpha']})))})$",
                 "a LoRA", "as a LoRA, on top of a network"),
    "network": Kind(r"(^|\.)(block\.layers\.\d+|blocks\.\d+\.experts\.[a-z]+)"
                    r"\.attention\.linear_(qkv|[qkvg](_[a-z]+)?)\.weight",
                    "a MagiHuman network", "as the network (diffusion model)"),
    "text_encoder": Kind(r"(^|\.)layers\.\d+\.pre_self_attn_layernorm\.weight$", "a T5Gemma text encoder",
                         "as the text encoder"),
    "turbo_vae": Kind(r"(^|\.)decoder\.mid_block\.resnets\.0\.conv1\.(conv|pointwise_conv)\.weight$",
                      "a Turbo VAE (fast video decoder)", "as the Turbo VAE"),
    "video_vae": Kind(r"^(decoder\.upsamples\.0\.upsamples\.0\.residual\.2\.weight"
                      r"|encoder\.down_blocks\.0\.resnets\.0\.norm1\.gamma)$",
                      "a Wan2.2 video VAE", "as the video VAE"),
    "audio_vae": Kind(r"(^|\.)encoder\.layers\.0\.(weight_v|parametrizations\.weight\.original1)$"
                      r"|^decoder\.block\.0\.snake1\.alpha$",
                      "an Oobleck audio VAE (Stable Audio Open)", "as the audio VAE"),
}

# Ways to store weights that are not read here: keys that only they have, their names, and what to do.
FOREIGN = (
    (r"\.wscales$", "SVDQuant (Nunchaku)"),
    (r"\.quant_state\.bitsandbytes__(nf4|fp4)$|\.absmax$", "bitsandbytes NF4"),
    (r"\.(qzeros|qweight)$", "GPTQ or AWQ"),
    (r"\.weight_scale_inv$", "fp8 with scales of blocks (weight_scale_inv)"),
)
# Relatives of a LoRA, which ComfyUI's own LoRA loader knows.
RELATIVES = ((r"[._]lokr_w[12]", "LoKr"), (r"[._]hada_w[12]_", "LoHa"), (r"[._]oft_blocks$|\.oft_diag$", "OFT or BOFT"),
             (r"\.(a1|a2|b1|b2)\.weight$", "GLoRA"))

# Files that people do try, and that belong to something else.
OTHER_MODELS = (
    (r"^(enc\.)?blk\.\d+\.", "a GGUF file under llama.cpp's names; one with Hugging Face's names is needed"),
    (r"^(model\.)?(diffusion_model\.)?blocks\.0\.cross_attn\.", "a Wan video model"),
    (r"^decoder\.upsamples\.0\.residual\.2\.weight$", "a Wan2.1 video VAE; the Wan2.2 one is needed"),
    (r"^encoder\.down_blocks\.0\.norm1\.gamma$", "a Wan2.1 video VAE; the Wan2.2 one is needed"),
    (r"^decoder\.up_blocks\.0\.resnets\.0\.conv1\.weight$", "the VAE of an image model"),
    (r"(double|single)_(stream_)?blocks\.0\.|double_layers\.0\.", "a Flux-like image model"),
    (r"(^|\.)transformer_blocks\.0\.", "another diffusion model (LTX, SD3 or the like)"),
    (r"(^|\.)(input_blocks|down_blocks)\.\d+\.", "a Stable-Diffusion-like model"),
    (r"^text_model\.encoder\.|(^|\.)text_model\.embeddings\.", "a CLIP text encoder"),
    (r"^encoder\.block\.0\.layer\.0\.SelfAttention", "a T5 text encoder; T5Gemma-9B-UL2 is needed"),
    (r"(^|\.)layers\.\d+\.self_attn\.q_proj\.weight$", "another language model; T5Gemma-9B-UL2 is needed"),
)


@dataclass(frozen=True, slots=True)
class Recognized:
    """kind: a key of KINDS or "unknown"; what: the same in words; layout and quantization in words; role: of
    a network, one of recipes.RECIPES, None where nothing tells."""

    kind: str
    what: str
    layout: str
    quantization: str | None
    role: str | None


def recognize(checkpoint: Mapping) -> Recognized:
    """Tell what the tensors are, by names and shapes."""
    checkpoint = as_checkpoint(checkpoint)
    if (foreign := next((name for pattern, name in FOREIGN if _has_key(checkpoint, pattern)), None)) is not None:
        return Recognized("unknown", f"a model in the format {foreign}, which is not read here: take the original, or "
                          "one in int8 or scaled fp8", "unknown", foreign, None)
    if (relative := next((name for pattern, name in RELATIVES if _has_key(checkpoint, pattern)), None)) is not None:
        return Recognized("unknown", f"a relative of LoRA ({relative}): ComfyUI's own LoRA loader applies it, from "
                          "models/loras; the command line takes plain LoRA only", "unknown", None, None)
    kind = next((name for name in KINDS if _has_key(checkpoint, KINDS[name].pattern)), "unknown")
    if kind == "unknown":
        what = next((what for pattern, what in OTHER_MODELS if _has_key(checkpoint, pattern)),
                    "nothing that MagiHuman uses")
        return Recognized(kind, what, "unknown", quantization(checkpoint), None)
    role = find_role(checkpoint.path, checkpoint.metadata) if kind == "network" else None
    return Recognized(kind, KINDS[kind].what, _layout(kind, checkpoint), quantization(checkpoint), role)


def _has_key(keys: Iterable[str], pattern: str) -> bool:
    return any(map(re.compile(pattern).search, keys))


def require_kind(checkpoint: Mapping, kind: str) -> None:
    """Raise CheckpointError for a checkpoint of another kind: the message says what it is and where it belongs.

    What is not recognized at all passes: the loader then names the tensors it misses.
    """
    checkpoint = as_checkpoint(checkpoint)
    found = recognize(checkpoint)
    if found.kind == kind or (found.kind == "unknown" and found.what.startswith("nothing")):
        return
    remedy = "another file" if found.kind == "unknown" else f"this file {KINDS[found.kind].use}, and another one here"
    raise CheckpointError(f"{checkpoint.name}: is {found.what}, where {KINDS[kind].what} is expected. Choose {remedy}.")


@contextmanager
def explain_shape_errors(name: str, kind: str) -> Iterator[None]:
    """Around code that takes sizes from a file and builds a module by them, without storage.

    Whatever goes wrong there is the fault of the shapes that the file claims: CheckpointError says so.
    """
    try:
        yield
    except (CheckpointError, InputError):
        raise
    except (ValueError, LookupError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{name}: its tensors do not have the shapes of {KINDS[kind].what}. It is damaged, "
                              "or belongs to another model: choose another file.") from error


def quantization(checkpoint: Checkpoint) -> str | None:
    """How weights are quantized, in words; None where they are plain numbers."""
    if checkpoint.metadata.get("format") == "gguf":
        return f"GGUF: {checkpoint.metadata.get('types')}"
    if COMFY_TABLE in checkpoint.metadata or any(k.endswith(".comfy_quant") for k in checkpoint):
        return "ComfyUI quantized layers"
    if any(key.endswith(".weight._data") for key in checkpoint):
        return "quanto int8, a scale per row"
    dtypes = {entry.dtype for entry in checkpoint.entries.values()}
    names = {torch.float8_e4m3fn: "fp8 (e4m3)", torch.float8_e5m2: "fp8 (e5m2)"}
    for dtype, name in names.items():
        if dtype in dtypes:
            scaled = any(key.endswith(SCALES) for key in checkpoint)
            return f"{name}, with scales" if scaled else f"{name}, without scales"
    return "int8" if torch.int8 in dtypes else None


def _layout(kind: str, checkpoint: Checkpoint) -> str:
    if kind == "network":
        if _has_key(checkpoint, r"(^|\.)blocks\.\d+\.experts\."):
            return "our own names"
        return "split experts" if _has_key(checkpoint, r"\.linear_q(_video)?\.weight") else "official"
    if MARKS.get(kind) in checkpoint:
        return "diffusers' names"
    if kind == "audio_vae":
        inside = [key.startswith("pretransform.model.") for key in checkpoint]
        return "bare" if not any(inside) else "prefixed" if all(inside) else "inside Stable Audio Open"
    if kind == "text_encoder":
        return "with decoder" if any("decoder.layers." in key for key in checkpoint) else "encoder only"
    return "official"
