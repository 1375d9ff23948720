"""The text encoder's architecture as data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from ..errors import InputError, shown


@dataclass(frozen=True)
class TextEncoderConfig:
    """T5Gemma's encoder, with the field names of its config.json; the defaults are the 9B encoder's.

    layer_types: "sliding_attention" or "full_attention" per layer; None: alternating, sliding first.
    use_attn_logit_softcapping: whether attn_logit_softcapping is applied. The released pipeline runs an
    attention that ignores it, so the transformer never saw text encoded with the cap.
    """

    hidden_size: int = 3584
    num_hidden_layers: int = 42
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 256
    intermediate_size: int = 14336
    vocab_size: int = 256000
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    sliding_window: int = 4096
    layer_types: tuple[str, ...] | None = None
    query_pre_attn_scalar: float = 256
    attn_logit_softcapping: float | None = 50.0
    use_attn_logit_softcapping: bool = False

    @classmethod
    def from_mapping(cls, config: "Mapping | TextEncoderConfig | None") -> "TextEncoderConfig":
        """From a config.json's contents, the encoder's part alone or nested under "encoder".

        Fields of no concern here are passed over. Raises InputError for values that cannot be run.
        """
        if isinstance(config, TextEncoderConfig):
            return config
        outer = {} if config is None else config
        inner = outer.get("encoder") if isinstance(outer, Mapping) else None
        for part in (outer, {} if inner is None else inner):
            if not isinstance(part, Mapping):
                raise InputError(f"text encoder config: expected a table of names and values, got {shown(part)}. "
                                 "Use the config.json that belongs to the weights.")
        config = {**outer, **(inner or {})}
        if isinstance(config.get("rope_parameters"), Mapping):         # as newer config.json files have it
            config.setdefault("rope_theta", config["rope_parameters"].get("rope_theta", cls.rope_theta))
        activation = config.get("hidden_activation", "gelu_pytorch_tanh")
        if activation != "gelu_pytorch_tanh":
            raise InputError(f"text encoder config: hidden_activation is {shown(activation)}, expected "
                             "'gelu_pytorch_tanh'; this is not the config of a T5Gemma encoder.")
        return cls(**{f.name: _typed(config[f.name], f.name, f.default) for f in fields(cls) if f.name in config})

    def slides(self, layer: int) -> bool:
        """Whether a layer's attention is limited to the sliding window."""
        if self.layer_types is not None:
            return self.layer_types[layer] == "sliding_attention"
        return layer % 2 == 0


def _typed(value, name: str, default):
    """A config's value of the kind that belongs to its name (lists become tuples). Raises InputError."""
    if name == "layer_types":
        expected = "a list of sliding_attention and full_attention"
        fits = value is None or (isinstance(value, (list, tuple)) and value and all(
            isinstance(item, str) and item in ("sliding_attention", "full_attention") for item in value))
    elif isinstance(default, bool):
        expected, fits = "true or false", isinstance(value, bool)
    elif isinstance(default, float) or name == "query_pre_attn_scalar":
        # Of a whole number without end even the conversion to float would fail.
        fits = (isinstance(value, float) and math.isfinite(value) and value > 0) or _is_size(value)
        expected, fits = "a positive number", fits or (value is None and name == "attn_logit_softcapping")
    else:
        expected, fits = "a positive whole number", _is_size(value)
    if fits:
        return tuple(value) if isinstance(value, list) else value
    raise InputError(f"text encoder config: {name} is {shown(value)}, expected {expected}. "
                     "Use the config.json that belongs to the weights.")


def _is_size(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31
