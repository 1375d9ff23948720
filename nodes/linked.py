"""What links bring, held to what the types of ComfyUI stand for: their form, their size, and numbers that are numbers.

ComfyUI compares the names of types alone: nodes of other packs can give batches of nothing, or lists for tensors.
"""

from collections.abc import Callable, Mapping
from typing import Any

from comfy_api.latest import InputImpl
from torch import Tensor

from ..magihuman_core.checkpoint.finite import is_finite
from ..magihuman_core.errors import shown
from ..magihuman_core.sizes import MAX_SECONDS

IMAGES = "images [B, height, width, channels], one or more, of 1 to 4 channels in floating numbers"
MASKS = "masks [height, width] or [B, height, width], one or more"
WAVEFORMS = "[B, channels, samples], one or more"
TEXTS = "texts [B, tokens, width] with their options, as MagiHuman Text Encode gives them"
# What an object of these types can do, whatever its class.
ABLE = {"MODEL": "model_options", "CLIP": "tokenize", "VAE": "decode", "VIDEO": "get_components"}


def fault(kind: str, value: Any) -> str:
    """Why a value cannot come from an output of this type, as the end of a sentence about it; empty where it can."""
    return FAULTS.get(kind, _of_object)(value, kind)


def _of_object(value: Any, kind: str) -> str:
    able = hasattr(value, ABLE[kind]) if kind in ABLE else not isinstance(value, str | int | float | list | dict)
    return "" if value is not None and able else _other(value, kind)


def _of_images(value: Any, kind: str) -> str:
    if not isinstance(value, Tensor):
        return _other(value, kind)
    fits = value.ndim == 4 and value.shape[-1] <= 4 and value.is_floating_point()
    return _of_tensor(value, fits, IMAGES)


def _of_masks(value: Any, kind: str) -> str:
    if not isinstance(value, Tensor):
        return _other(value, kind)
    # With an axis for channels, as some packs have it.
    return _of_tensor(value, value.ndim in (2, 3) or (value.ndim == 4 and value.shape[1] == 1), MASKS)


def _of_audio(value: Any, kind: str) -> str:
    if not isinstance(value, Mapping) or "waveform" not in value:
        return _other(value, kind)
    if "sample_rate" not in value:
        return "has no sample_rate, expected its samples per second beside the waveform"
    waveform = value["waveform"]
    if not isinstance(waveform, Tensor):
        return f"(its waveform) is {_said(waveform)}, expected a tensor {WAVEFORMS}"
    if waveform.ndim in (2, 3) and waveform.shape[-1] == 0 and 0 not in waveform.shape[:-1]:
        return ""  # the nodes say what an empty recording lacks; of a video it is no sound
    return _of_tensor(waveform, waveform.ndim in (2, 3), WAVEFORMS)


def _of_latent(value: Any, kind: str) -> str:
    if not isinstance(value, Mapping):
        return _other(value, kind)
    for name, needed in (("samples", True), ("noise_mask", False)):
        found: Any = value.get(name)
        if found is None and not needed:
            continue
        streams = found.unbind() if getattr(found, "is_nested", False) else [found]
        if not all(isinstance(stream, Tensor) for stream in streams):
            return f"(its {name}) is {_said(found)}, expected what an output of the type {kind} gives"
        if any(not is_finite(stream) for stream in streams):
            return f"(its {name}) holds values that are not numbers, expected finite ones"
        if name == "noise_mask" and any(stream.ndim < 2 or 0 in stream.shape for stream in streams):
            shapes = " and ".join(str(list(stream.shape)) for stream in streams)
            return f"(its noise_mask) has the shape {shapes}, expected {MASKS}"
    return ""


def _of_conditioning(value: Any, kind: str) -> str:
    if not isinstance(value, list | tuple) or not value:
        return _other(value, kind)
    for entry in value:
        if not isinstance(entry, list | tuple) or len(entry) != 2 or not isinstance(entry[1], Mapping):
            return _other(value, kind)
        if not isinstance(entry[0], Tensor):
            return f"(its text) is {_said(entry[0])}, expected {TEXTS}"
        if found := _of_tensor(entry[0], entry[0].ndim == 3, TEXTS):
            return found
    return ""


def _of_video(value: Any, kind: str) -> str:
    """Of a film in a file nothing is read here: its node says what is wrong with it."""
    if not isinstance(value, InputImpl.VideoFromComponents):
        return _of_object(value, kind)
    parts = value.get_components()
    if found := _of_images(parts.images, "IMAGE"):
        return f"(its images) {found}"
    if parts.audio is not None and (found := _of_audio(parts.audio, "AUDIO")):
        return f"(its sound) {found}"
    try:
        seconds = len(parts.images) / parts.frame_rate
    except (TypeError, ZeroDivisionError):
        seconds = 0
    if not 0 < seconds <= MAX_SECONDS:
        return (f"has {len(parts.images)} frames at the rate {shown(parts.frame_rate)}, expected a positive number of "
                f"frames per second and a length of at most {MAX_SECONDS} seconds")
    return ""


def _of_tensor(tensor: Tensor, fits: bool, wanted: str) -> str:
    if not fits or 0 in tensor.shape:
        return f"has the shape {list(tensor.shape)} in {str(tensor.dtype)[6:]}, expected {wanted}"
    return "" if is_finite(tensor) else "holds values that are not numbers, expected finite ones"


def _other(value: Any, kind: str) -> str:
    return f"is {_said(value)}, expected what an output of the type {kind} gives"


def _said(value: Any) -> str:
    plain = value is None or isinstance(value, str | int | float)
    return shown(value) if plain else f"of the type {type(value).__name__}"


FAULTS: dict[str, Callable[[Any, str], str]] = {
    "IMAGE": _of_images, "MASK": _of_masks, "AUDIO": _of_audio, "LATENT": _of_latent, "VIDEO": _of_video,
    "CONDITIONING": _of_conditioning}
