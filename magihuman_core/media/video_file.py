"""Pictures, sounds and films: reading, fitting and writing them. Files are decoded by Pillow and PyAV."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..atomic import temporary_name, whole_file
from ..errors import InputError
from ..sizes import FPS
from .waveform import OUTPUT_RATE, to_stereo

if TYPE_CHECKING:
    import av
    from PIL import Image

log = logging.getLogger(__name__)


# Pictures


def load_image(path: str | Path) -> Image.Image:
    """Open a picture as RGB, turned upright as its EXIF data says.

    Transparent parts are laid over white, as picture viewers show them: the colour hidden below them is
    arbitrary. Of an animation the first frame is taken. Raises InputError.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    _check_readable(path, "picture")
    try:
        with Image.open(path) as opened:
            return to_rgb(opened)
    except UnidentifiedImageError:
        raise InputError(f"{path}: is no picture. Give a PNG, JPEG or WebP file.") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be decoded ({error}). Give another picture.") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, upright as its EXIF data says, transparent parts over white."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a channel, which Pillow would clip at 255
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def crop_box(width: int, height: int, target_width: int, target_height: int) -> tuple[float, ...]:
    """(left, top, right, bottom) of the largest centred part of a picture that has the target's aspect."""
    aspect = target_width / target_height
    if width / height > aspect:
        crop_width, crop_height = int(height * aspect), height
    else:
        crop_width, crop_height = width, int(width / aspect)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return left, top, left + crop_width, top + crop_height


def fit_image(image: Image.Image, width: int, height: int) -> Tensor:
    """Crop the middle to the target's aspect, resize (Lanczos) -> fp32 [1, 3, 1, height, width] in [-1, 1].

    The leading axes are batch, channels and time: one frame, as the video VAE encodes it.
    """
    import numpy as np
    from PIL import Image

    if image.size != (width, height):
        # Corners at half pixels are rounded half to even, by Pillow; the model was used with exactly that.
        image = image.crop(crop_box(*image.size, width, height))
        if not image.width or not image.height:
            raise InputError(f"The picture is too narrow for {width}x{height}. Give a larger one.")
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)
    return (2 * pixels - 1).permute(2, 0, 1)[None, :, None]  # [h, w, 3] -> [1, 3, 1, h, w]


def frames_to_uint8(video: Tensor) -> Tensor:
    """[1, 3, F, h, w] in about [-1, 1] -> uint8 [F, h, w, 3], clipped, and truncated rather than rounded."""
    frames = video[0].permute(1, 2, 3, 0)  # [3, F, h, w] -> [F, h, w, 3]
    return (frames.float() / 2 + 0.5).clamp(0, 1).mul(255).to(torch.uint8).contiguous()


# Sounds


def load_audio(path: str | Path, seconds: float | None = None) -> tuple[Tensor, int]:
    """Decode the sound of a file -> (fp32 [2, samples], its own sample rate).

    Any sound or film that FFmpeg reads. Channels become two as in waveform.to_stereo.
    seconds: stop after so much. Raises InputError.
    """
    import av

    path = Path(path)
    _check_readable(path, "sound")
    parts, count, rate = [], 0, 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise InputError(f"{path}: has no sound. Give a recording, such as a WAV, MP3 or M4A file.")
            stream = container.streams.audio[0]
            rate = stream.codec_context.sample_rate
            limit = math.inf if seconds is None else round(seconds * rate)
            for part in _decode_audio(container, stream):
                parts.append(part)
                count += part.shape[1]
                if count >= limit:
                    break
    except InputError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read as sound ({reason}). Give a WAV or MP3 file.") from None
    if not count:
        raise InputError(f"{path}: holds no sound at all. Give a recording that is not empty.")
    audio = torch.cat(parts, 1)[:, : count if seconds is None else min(count, limit)]
    if not bool(torch.isfinite(audio).all()):
        raise InputError(f"{path}: holds samples that are not numbers. Export the sound again.")
    return audio, rate


def _decode_audio(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[Tensor]:
    """fp32 [2, n] of each decoded frame."""
    import av

    resampler = None
    for frame in container.decode(stream):
        if resampler is None:
            # Only the format changes: channels are mixed as those of a sound in memory are. Interleaved, because
            # PyAV crashes where eight or more channels lie apart.
            resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
        frame.pts = None
        yield from map(_stereo, resampler.resample(frame))
    if resampler is not None:
        yield from map(_stereo, resampler.resample(None))


def _stereo(frame: av.AudioFrame) -> Tensor:
    """fp32 [2, n] of an interleaved frame."""
    samples = torch.from_numpy(frame.to_ndarray())  # [1, n * channels]
    return to_stereo(samples.view(-1, frame.layout.nb_channels).T)


# Films


def check_output(path: str | Path) -> Path:
    """Make sure, before long work starts, that an mp4 can be written there; its folder is made.

    Raises InputError.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise InputError(f"{path}: the clip is written as mp4. Give a name that ends in .mp4.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder. Give the name of a file.")
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be written ({reason}). Choose another folder.") from None
    return path


def write_mp4(
    path: str | Path,
    frames: Iterable[Tensor],
    audio: Tensor | None,
    *,
    fps: float | Fraction = FPS,
    sample_rate: int = OUTPUT_RATE,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an H.264 (yuv420p, BT.709) and AAC film.

    frames: uint8 [h, w, 3] one by one, h and w even: a tensor [F, h, w, 3], or an iterator, which is read
    frame by frame and never held. audio: [2, samples] (or [1, samples]) in [-1, 1], cut, or filled with
    silence, to the picture's length; None: no sound. The film appears under its name only when it is
    complete: it is written under a temporary name in the same folder, which any error, or Ctrl-C, removes.
    Raises InputError for unusable input and where the disk refuses.
    """
    import av

    path = Path(path)
    fps = Fraction(fps).limit_denominator(1001)
    try:
        with whole_file(path) as file:
            _write(file, path, iter(frames), audio, fps, sample_rate, metadata or {})
    except InputError:
        raise
    except (OSError, av.FFmpegError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # PyAV wraps some
        raise InputError(f"{path}: cannot be written ({cause.strerror or cause}); nothing is left there. "
                         "Free some space or choose another folder.") from error


def _write(file, path: Path, frames: Iterator[Tensor], audio: Tensor | None, fps: Fraction,
           sample_rate: int, metadata: Mapping[str, str]) -> None:
    import av

    first = next(frames, None)
    if first is None:
        raise InputError(f"{path}: there are no frames to write.")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise InputError(f"{path}: the frames are {width}x{height}; H.264 takes even sizes only.")
    # use_metadata_tags keeps names that mp4 does not know.
    with av.open(file, "w", format="mp4", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update({key: str(value) for key, value in metadata.items()})
        video = _add_video(container, width, height, fps)
        sound = None if audio is None else _Sound(container, audio, sample_rate)
        for count, frame in enumerate(chain([first], frames)):
            if tuple(frame.shape) != (height, width, 3) or frame.dtype != torch.uint8:
                raise InputError(f"{path}: frame {count} is {frame.dtype} {tuple(frame.shape)}, "
                                 f"expected uint8 {(height, width, 3)}.")
            picture = av.VideoFrame.from_ndarray(frame.cpu().numpy(), format="rgb24")
            # The source needs no name: RGB has no matrix. BT.709 is what players assume of such sizes.
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            picture.pts, picture.time_base = count, 1 / fps
            container.mux(video.encode(picture))
            if sound is not None:
                sound.advance(round((count + 1) * sample_rate / fps))
        container.mux(video.encode(None))
        if sound is not None:
            sound.finish()


def _add_video(container: av.container.OutputContainer, width: int, height: int, fps: Fraction):
    stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    context = stream.codec_context
    # Code points of ITU-T H.273: 1 is BT.709 in all three; range 1 is the limited one of video.
    context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1
    return stream


class _Sound:
    """The sound track, fed as far as the picture has come, so that the two lie side by side in the file."""

    def __init__(self, container: av.container.OutputContainer, audio: Tensor, sample_rate: int) -> None:
        if audio.ndim != 2 or audio.shape[0] not in (1, 2):
            raise InputError(f"the sound has shape {tuple(audio.shape)}, expected [2, samples].")
        self.container, self.audio, self.rate, self.position = container, audio, sample_rate, 0
        self.stream = container.add_stream("aac", rate=sample_rate, layout="stereo")
        self.stream.bit_rate = 192_000

    def advance(self, end: int) -> None:
        """Encode all samples before `end`; silence where there are none."""
        import av

        part = self.audio[:, self.position : end].detach().cpu().float().clamp(-1, 1).expand(2, -1)
        part = torch.nn.functional.pad(part, (0, end - self.position - part.shape[1]))
        frame = av.AudioFrame.from_ndarray(part.contiguous().numpy(), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = self.rate, self.position, Fraction(1, self.rate)
        self.container.mux(self.stream.encode(frame))
        self.position = end

    def finish(self) -> None:
        self.container.mux(self.stream.encode(None))


def _check_readable(path: Path, what: str) -> None:
    """Say plainly that a file is missing, a folder, empty, or a download that went wrong."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a {what} file.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such {what} file. Check the name.") from None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be read ({reason}). Check its permissions.") from None
    except ValueError:  # a zero byte in the name
        raise InputError(f"{str(path)!r}: is no possible name of a {what} file.") from None
    if not head:
        raise InputError(f"{path}: is empty. Give another {what} file.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: is a Git-LFS pointer, not the {what}. Fetch it with 'git lfs pull'.")
