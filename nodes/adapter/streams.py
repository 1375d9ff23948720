"""A LATENT's two streams, video and audio: taken out of it, checked, and put back.

On sockets they are one NestedTensor; while ComfyUI samples they are one packed vector (see MagiHumanModel).
"""

import comfy.model_management
import comfy.nested_tensor
import comfy.utils
import torch
from torch import Tensor

from ...magihuman_core.errors import InputError
from ...magihuman_core.sampling.frozen import JointLatent, empty_latent
from ...magihuman_core.sizes import PIXELS_PER_LATENT

FRAMES = "magihuman_frames"  # of a LATENT: frames of the clip that was encoded, where the last latent frame holds more
UPSCALED = "magihuman_upscaled"  # marks a LATENT made for a super-resolution model
GENERATED = "magihuman_generated_sound"  # of a LATENT: mask [B, 1, A] of the sound that was made anew so far
HINT = "Use Empty MagiHuman Latent, or join a video and an audio latent with Concat AV Latent."


def nested(*streams: Tensor) -> comfy.nested_tensor.NestedTensor:
    """Video [B, C, T, H, W] and audio [B, c, A] as one value of a LATENT socket."""
    return comfy.nested_tensor.NestedTensor(streams)


def split(latent: dict, channels: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """(video [B, C, T, H, W], audio [B, c, A]) of a LATENT. channels: (C, c) where they are known.

    Raises InputError, in the words of the nodes, for the latent of another model.
    """
    samples = latent["samples"]
    streams = samples.unbind() if samples.is_nested else [samples]
    check_shapes([tuple(s.shape) for s in streams], channels)
    return streams[0], streams[1]


def check_shapes(shapes: list[tuple[int, ...]], channels: tuple[int, int] | None = None) -> None:
    """Raise InputError unless these are the shapes of a video and an audio stream."""
    check_filled(shapes)
    if len(shapes) == 1 and len(shapes[0]) == 5:
        check_channels("video", shapes[0], channels and channels[0])
    if len(shapes) == 1:
        raise InputError(f"The latent holds one stream of shape {list(shapes[0])}, without the sound. {HINT}")
    if len(shapes) != 2 or len(shapes[0]) != 5 or len(shapes[1]) != 3:
        found = " and ".join(str(list(s)) for s in shapes)
        raise InputError(f"The latent holds {found}, expected video [B, C, T, H, W] and audio [B, C, A]. {HINT}")
    for name, shape, count in zip(("video", "audio"), shapes, channels or (None, None), strict=True):
        check_channels(name, shape, count)
    height, width = shapes[0][3:]
    if height % 2 or width % 2:
        raise InputError(f"The video latent is {width} x {height} latent pixels, expected even numbers: choose a width "
                         "and height in multiples of 32 pixels.")
    if shapes[0][0] != shapes[1][0]:
        raise InputError(f"The latent has {shapes[0][0]} videos but {shapes[1][0]} sounds; both need the "
                         "same batch size.")


def check_filled(shapes: list[tuple[int, ...]]) -> None:
    """Raise InputError for a latent of no size, as nodes that cut latents can leave it."""
    if any(0 in shape for shape in shapes):
        found = " and ".join(str(list(shape)) for shape in shapes)
        raise InputError(f"The latent holds nothing: its shape is {found}. Look at the node that cuts it. {HINT}")


def check_channels(name: str, shape: tuple[int, ...], count: int | None) -> None:
    """Raise InputError unless a stream has the channels that a model takes, where these are known."""
    if count is not None and shape[1] != count:
        raise InputError(f"The {name} latent has {shape[1]} channels, but this model takes {count}: it was made "
                         f"by another model's VAE or latent node. {HINT}")


def joint_latent(latent: dict) -> JointLatent:
    """A LATENT's streams and masks; without a mask all is to be generated. Raises InputError as `split` does."""
    streams = split(latent)
    found = latent.get("noise_mask")
    given = [] if found is None else list(found.unbind()) if found.is_nested else [found]
    masks = [torch.ones_like(stream[:, :1]) for stream in streams]
    for index, mask in enumerate(given[:2]):
        masks[index] = fit_mask(mask, masks[index])
    return JointLatent(*streams, *masks)


def generated_sound(latent: dict) -> Tensor:
    """Where the sound of a LATENT is not what was encoded, above 0: opened by its mask or those before. [B, 1, A]."""
    mask, before = joint_latent(latent).audio_mask, latent.get(GENERATED)
    return mask if before is None or before.shape != mask.shape else torch.maximum(mask, before.to(mask))


def fit_mask(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as ComfyUI may carry it, brought to the stream's own size."""
    if mask.ndim > like.ndim == 3:  # of a picture, for the audio: its columns stand for time
        mask = mask.flatten(2, -2).mean(2)
    if mask.ndim < like.ndim == 5:  # one for each frame, as core's samplers read it
        mask = mask.reshape(1, 1, -1, *mask.shape[-2:])
    elif mask.ndim < like.ndim:
        mask = mask.reshape((1,) * (like.ndim - mask.ndim) + tuple(mask.shape))
    return comfy.utils.reshape_mask(mask[:, :1].to(like), like.shape)


def with_streams(latent: dict, streams: JointLatent) -> dict:
    """A LATENT like another one, with these streams and masks."""
    return {**latent, "samples": nested(streams.video, streams.audio),
            "noise_mask": nested(streams.video_mask, streams.audio_mask)}


def empty(width: int, height: int, audio_length: int, channels: tuple[int, int] = (48, 64), batch: int = 1) -> dict:
    """A LATENT of zeros for a size in pixels and a number of audio latents. batch: clips in it."""
    latent = empty_latent(width, height, audio_length, channels, comfy.model_management.intermediate_device())
    streams = (stream.repeat(batch, *[1] * (stream.ndim - 1)) for stream in (latent.video, latent.audio))
    return {"samples": nested(*streams), "downscale_ratio_spacial": PIXELS_PER_LATENT,
            "downscale_ratio_temporal": 4}
