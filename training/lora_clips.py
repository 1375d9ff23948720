"""Clips for a LoRA, encoded once: latents of both streams and the prompt's embedding, one file for each clip.

    python -m training.lora_clips --films FOLDER --models FOLDER --out FOLDER    # films, each with its prompt in a .txt
    python -m training.lora_clips --hats 32 --models demo --out FOLDER           # drawn people with a hat, for the demo

A film is taken from its beginning, at 25 frames a second, its middle cut to the wanted size.
"""

import argparse
from pathlib import Path

import av
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from magihuman_core import load_audio_vae, load_text_encoder, load_video_vae
from magihuman_core.loading.folder import find_models
from magihuman_core.media.audio_file import load_audio
from magihuman_core.media.image import fit_image
from magihuman_core.media.waveform import resample_recording
from magihuman_core.sizes import FPS, audio_length, floor_size
from training.clips import frames_in, make_clip
from training.common import Progress, Stop
from training.voice import SAMPLE_RATE, SAMPLES_PER_TOKEN

HAT_SEED = 400_000
FILMS = (".mp4", ".mov", ".mkv", ".webm")


class Encoders:
    """The encoders in a folder of models: the released ones, or the demo's."""

    def __init__(self, folder, device="cpu", dtype=torch.float32):
        models = find_models(folder)
        self.device = device
        self.vae = load_video_vae(models["video_vae"], dtype=dtype, device=device)
        self.audio_vae = load_audio_vae(models["audio_vae"], device=device)
        self.text = load_text_encoder(models["text_encoder"], dtype=dtype, device=device)

    @torch.inference_mode()
    def encode(self, video, waveform, prompt):
        """{name: tensor} of a clip. video: [1, 3, F, H, W] in -1..1; waveform: [2, n] at 51.2 kHz."""
        latents = {
            "video": self.vae.encode(video.to(self.device)),
            "audio": self.audio_vae.encode_long(waveform[None].to(self.device)),
            "text": self.text.encode(prompt),
        }
        return {name: latent.float().cpu() for name, latent in latents.items()}


def read_film(path, seconds, width, height):
    """The beginning of a film: (video [1, 3, F, H, W] in -1..1, waveform [2, n] at 51.2 kHz). Raises Stop."""
    images = read_frames(path, frames_in(seconds))
    waveform, rate = load_audio(path, seconds + 1)
    waveform = resample_recording(waveform, rate, SAMPLE_RATE)
    length = audio_length(seconds) * SAMPLES_PER_TOKEN
    if images is None or waveform.shape[1] < length - SAMPLE_RATE // 10:
        raise Stop(f"{path} has less than {seconds:g} s of both film and sound: give fewer --seconds.")
    waveform = torch.nn.functional.pad(waveform, (0, max(0, length - waveform.shape[1])))[:, :length]
    return torch.cat([fit_image(image, width, height) for image in images], 2), waveform


def read_frames(path, count):
    """What a film shows at 0, 1/25, 2/25 ... s, whatever its own rate; None where it is too short."""
    images, shown, end = [], None, 0.0
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        first = None
        for frame in film.decode(stream):
            first = frame.time if first is None else first
            while len(images) < count and len(images) / FPS < frame.time - first - 1e-6:
                images.append(shown)
            if len(images) == count:
                return images
            shown, end = frame.to_image(), frame.time - first + 1 / float(stream.average_rate)
    while shown is not None and len(images) < count and len(images) / FPS < end - 1e-6:
        images.append(shown)
    return images if len(images) == count else None


def save_clip(path, tensors, prompt):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"prompt": prompt})


def load_clip(path):
    """({"video", "audio", "text"}, prompt)."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()["prompt"]  # noqa: SIM118


def encode_films(folder, encoders, out, seconds, width, height):
    """All films of a folder that have a prompt beside them. Raises Stop where there is none, or one is too short."""
    films = sorted(path for path in folder.iterdir() if path.suffix.lower() in FILMS)
    without = [path.name for path in films if not path.with_suffix(".txt").exists()]
    if not films or without:
        missing = f"{', '.join(without[:5])} has no prompt" if films else "there is no film"
        raise Stop(f"{folder}: {missing}. Put films there, and beside each its prompt in a .txt of the same name.")
    progress = Progress(f"films encoded into {out}", 0, len(films))
    for path in films:
        target = out / f"{path.stem}.safetensors"
        if not target.exists():
            prompt = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
            save_clip(target, encoders.encode(*read_film(path, seconds, width, height), prompt), prompt)
        progress.step()


def encode_hats(count, encoders, out, seconds, width, height):
    """Drawn people who wear a hat, which no prompt speaks of."""
    progress = Progress(f"clips encoded into {out}", 0, count)
    for seed in range(HAT_SEED, HAT_SEED + count):
        target = out / f"hat_{seed}.safetensors"
        if not target.exists():
            clip = make_clip(seed, height, width, seconds, hat=True)
            video = torch.from_numpy(clip.video.astype(np.float32)).permute(3, 0, 1, 2)[None] / 127.5 - 1
            save_clip(target, encoders.encode(video, torch.from_numpy(clip.audio), clip.caption), clip.caption)
        progress.step()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--films", type=Path, help="folder of films and prompts")
    what.add_argument("--hats", type=int, metavar="COUNT", help="so many drawn clips")
    parser.add_argument("--models", required=True, help="folder of models, or demo")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the encoders")
    options = parser.parse_args()
    encoders = Encoders(options.models, options.device, getattr(torch, options.dtype))
    size = floor_size(*options.size)
    if options.films:
        encode_films(options.films, encoders, options.out, options.seconds, *size)
    else:
        encode_hats(options.hats, encoders, options.out, options.seconds, *size)


if __name__ == "__main__":
    main()
