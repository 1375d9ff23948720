"""From a file to the text encoder: its tensors, its configuration, its tokenizer."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.assign import assign_weights
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.json_file import read_json_object
from ..checkpoint.quantize import kept_wide, quantized_layers, stored_dtype
from ..checkpoint.weight_files import is_file, is_folder
from ..errors import CheckpointError, InputError
from ..nn.operations import Operations
from ..nn.quantized_linear import compute_dtype_of
from ..runtime.build import build_text_encoder
from ..runtime.devices import check_dtype, held_dtype
from ..runtime.streaming import LAYERS, check_resident_blocks, choose_streamed, is_streamed, stream_blocks
from ..text.config import TextEncoderConfig
from ..text.encoder import TextEncoder
from ..weights.comfyui_saved import TOKENIZER
from ..weights.open import open_checkpoint
from ..weights.precision import keep_fp32, may_quantize
from ..weights.recognize import explain_shape_errors
from ..weights.text_encoder_keys import encoder_keys

MAX_TOKENIZER = 200_000_000  # bytes; T5Gemma's tokenizer.json has 34 million
MAX_GROWTH, MAX_STEPS = 16.0, 64  # of a text before the vocabulary is applied


def load_text_encoder(source: str | Path | Mapping[str, Tensor], tokenizer=None,
                      config: Mapping | TextEncoderConfig | None = None, *, dtype: torch.dtype | None = None,
                      device: torch.device | str = "cpu", operations: Operations = nn,
                      compute_dtype: torch.dtype | None = None, resident_layers: int | None = None,
                      stream_from: str | None = "file") -> TextEncoder:
    """Load T5Gemma's encoder of any size, with its tokenizer.

    source: file, folder, index file, or mapping of tensors, with or without the decoder.
    tokenizer: tokenizer.json, its folder, or a `tokenizers.Tokenizer`; None: tokenizer.json beside the
    weights, and without one only forward(ids) works. config: contents of T5Gemma's config.json; None: the one
    that came with the weights, or else the 9B encoder's. Sizes that shapes tell come from the shapes.
    dtype: None keeps what is stored (of a file in 8 bits its linear layers; the others are in bf16); float8_e4m3fn,
    float8_e5m2 or int8 are what the linear layers are stored in, computed in bf16 (see nn/quantized_linear.py).
    compute_dtype: another one than the weights', such as fp32 where a device has no bf16. resident_layers: how many
    layers stay in memory, None: all. The others are brought in when they are needed, as the network's blocks are
    (see load_dit), by default from the file: all prompts pass through at once.
    Raises CheckpointError and InputError.
    """
    check_resident_blocks(resident_layers, "resident_layers")
    if dtype is not None:
        check_dtype(dtype, device)
    checkpoint, sizes, tokenizer = open_text_encoder(source, tokenizer, config)
    if dtype is None:  # beside layers in 8 bits the others have to be in the dtype that these are decoded to
        dtype = held_dtype(stored_dtype(checkpoint, may_quantize), device)
    if dtype is None and resident_layers is not None:
        dtype = checkpoint.dtype(LAYERS + "0.self_attn.q_proj.weight")
    with explain_shape_errors(checkpoint.name, "text_encoder"):
        encoder = build_text_encoder(sizes, dtype, compute_dtype=compute_dtype, operations=operations,
                                     wide=kept_wide(checkpoint, dtype, may_quantize))
        tensors = quantized_layers(checkpoint, dtype, may_quantize)
    kept = None if dtype is None else compute_dtype_of(dtype)
    layers = encoder.encoder.layers
    streamed = choose_streamed(layers, resident_layers)
    assign_weights(encoder, tensors, dtype=kept, device=device, keep_fp32=keep_fp32,
                   skip=lambda key: is_streamed(key, streamed, LAYERS))
    if streamed:
        stream_blocks(layers, tensors, streamed, device, stream_from, LAYERS)
    encoder.tokenizer = tokenizer
    return encoder.eval()


def open_text_encoder(source, tokenizer=None, config: Mapping | TextEncoderConfig | None = None):
    """(tensors under our keys, configuration, tokenizer or None) for load_text_encoder's arguments."""
    checkpoint = encoder_keys(open_checkpoint(source, "text_encoder"))
    given = config if config is not None else stored_config(checkpoint)
    if tokenizer is None:
        inside = checkpoint.metadata.get(TOKENIZER)
        tokenizer = sibling_file(checkpoint.path, "tokenizer.json") if inside is None else read_tokenizer(
            inside, checkpoint.name)
    with explain_shape_errors(checkpoint.name, "text_encoder"):
        sizes = config_from_shapes(checkpoint, given)
    return checkpoint, sizes, None if tokenizer is None else load_tokenizer(tokenizer)


def load_tokenizer(source):
    """A `tokenizers.Tokenizer` from itself, a tokenizer.json, or a folder that holds one.

    Padding and truncation that the file may ask for are switched off. Raises InputError.
    """
    from tokenizers import Tokenizer

    if isinstance(source, Tokenizer):
        if source.padding is None and source.truncation is None:
            return source
        tokenizer = Tokenizer.from_str(source.to_str())       # the caller's own is left as it is
    else:
        path = Path(source)
        path = path / "tokenizer.json" if is_folder(path) else path
        if not is_file(path):
            raise InputError(f"{path}: no such tokenizer file; give T5Gemma's tokenizer.json.")
        try:
            if path.stat().st_size > MAX_TOKENIZER:
                raise InputError(f"{path}: is larger than any tokenizer.json; give T5Gemma's.")
            tokenizer = Tokenizer.from_file(str(path))
            check_tokenizer(tokenizer)
        except InputError:
            raise
        except Exception as error:                            # tokenizers raises bare Exception
            raise InputError(f"{path}: not a tokenizer.json ({error}); give T5Gemma's.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read_tokenizer(content: str, name: str):
    """A `tokenizers.Tokenizer` from a tokenizer.json's content; name: of the file it was in. Raises CheckpointError."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content)
        check_tokenizer(tokenizer)
        return tokenizer
    except Exception as error:                                # tokenizers raises bare Exception
        raise CheckpointError(f"{name}: the tokenizer in it cannot be read ({error}). Save the text encoder again, or "
                              "give T5Gemma's tokenizer.json.") from error


def check_tokenizer(tokenizer) -> None:
    """Raise ValueError for a tokenizer whose file makes it slow or large, whatever the text.

    What stands before the vocabulary may be a program: patterns that try all ways to match, or texts that grow. Of
    patterns only choices of words are taken, as T5Gemma's own and the demo's are.
    """
    growth, steps = 1.0, 0
    for part in (tokenizer.normalizer, tokenizer.pre_tokenizer):
        waiting = [] if part is None else [json.loads(part.__getstate__())]
        while waiting:
            step = waiting.pop()
            waiting += [*step.get("normalizers", ()), *step.get("pretokenizers", ())]
            steps += 1
            pattern = step.get("pattern")
            if not isinstance(pattern, dict):
                continue
            if "Regex" in pattern and not _is_plain(pattern["Regex"]):
                raise ValueError("it holds a pattern that could take forever")
            words: str = pattern.get("String") or pattern.get("Regex") or ""
            shortest = min(map(len, words.split("|")))
            growth *= max(1.0, len(step.get("content", "")) / max(1, shortest))
    if growth > MAX_GROWTH or steps > MAX_STEPS:
        raise ValueError("it makes texts many times longer")


def _is_plain(pattern: str) -> bool:
    """Whether a pattern repeats nothing and has one group at most: it is then tried in one way only."""
    return pattern.replace("(?:", "(").count("(") <= 1 and not set("*+?{") & set(pattern.replace("(?:", ""))


def config_from_shapes(checkpoint: Checkpoint, config: Mapping | TextEncoderConfig | None = None) -> TextEncoderConfig:
    """All sizes that shapes tell, the rest from config or the 9B encoder's. Raises CheckpointError."""
    given = TextEncoderConfig.from_mapping(config)
    first = "encoder.layers.0."

    def shape(key: str) -> tuple[int, ...]:
        if key not in checkpoint:
            raise CheckpointError(f"{checkpoint.name}: {key} is missing. The file is incomplete; get it anew.")
        return checkpoint.shape(key)

    vocab_size, hidden_size = shape("encoder.embed_tokens.weight")
    inner = shape(first + "self_attn.q_proj.weight")[0]
    kv_inner = shape(first + "self_attn.k_proj.weight")[0]
    if inner % given.head_dim or kv_inner % given.head_dim:
        raise CheckpointError(f"{checkpoint.name}: {inner} rows of queries and {kv_inner} of keys do not "
                              f"divide into heads of {given.head_dim}. Give the config.json (head_dim).")
    layers = 0
    while f"encoder.layers.{layers}.self_attn.q_proj.weight" in checkpoint:
        layers += 1
    heads, kv_heads = inner // given.head_dim, kv_inner // given.head_dim
    intermediate_size = shape(first + "mlp.gate_proj.weight")[0]
    if given.head_dim % 2 or not kv_heads or heads % kv_heads:
        raise CheckpointError(f"{checkpoint.name}: {heads} heads of queries, {kv_heads} of keys, {given.head_dim} "
                              "wide, do not go together. Give the config.json made for these weights.")
    if given.layer_types is not None and len(given.layer_types) != layers:
        raise CheckpointError(f"{checkpoint.name}: has {layers} layers, but the config's layer_types names "
                              f"{len(given.layer_types)}. Give the config.json made for these weights.")
    return replace(given, vocab_size=vocab_size, hidden_size=hidden_size, num_hidden_layers=layers,
                   num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=intermediate_size)


def stored_config(checkpoint: Checkpoint) -> TextEncoderConfig | None:
    """The config that came with the weights: in the file's metadata, or config.json beside them.

    What is not JSON, or belongs to another model, is passed over. Raises CheckpointError for values that cannot be run.
    """
    source = checkpoint.metadata.get("config") or sibling_file(checkpoint.path, "config.json")
    config = read_json_object(source) if source else None
    # A config.json of another model may lie in the same folder.
    kind = str(config.get("model_type", "")) if config else ""
    if not kind.startswith(("t5_gemma", "t5gemma")):
        return None
    try:
        return TextEncoderConfig.from_mapping(config)
    except InputError as error:
        place = source if isinstance(source, Path) else checkpoint.name
        raise CheckpointError(f"{place}: {error}") from None


def sibling_file(path: Path | None, name: str) -> Path | None:
    """The file of this name beside the weights, or in their folder."""
    file = None if path is None else (path if is_folder(path) else path.parent) / name
    return file if file is not None and is_file(file) else None
