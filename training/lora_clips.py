"""Clips for a LoRA, encoded once: latents of both streams and the prompt's embedding, one file for each clip.

    python -m training.lora_clips --films FOLDER --models FOLDER --out FOLDER    # films, each with its prompt in a .txt
    python -m training.lora_clips --hats 32 --models demo --out FOLDER           # drawn people with a hat, for the demo

A film is taken from its beginning, at 25 frames a second, its middle cut to the wanted size. Started again, the command
encodes what is new or changed: every file says what it was made of.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from magihuman_core import load_audio_vae, load_text_encoder, load_video_vae
from magihuman_core.atomic import whole_file
from magihuman_core.loading.folder import find_models
from magihuman_core.media.video_file import open_video
from magihuman_core.media.waveform import resample_recording
from magihuman_core.sizes import audio_length, floor_size
from training.clips import frames_in, make_clip
from training.common import Progress, Stop, alone, contents_hash, files_hash
from training.options import command, device, positive, whole
from training.voice import SAMPLE_RATE, SAMPLES_PER_TOKEN

HAT_SEED = 400_000
FILMS = (".mp4", ".mov", ".mkv", ".webm")
PARTS = ("video_vae", "audio_vae", "text_encoder")
TENSORS = {"video": 5, "audio": 3, "text": 3}  # of an encoded clip, and their axes


class Encoders:
    """The encoders in a folder of models: the released ones, or the demo's. They are loaded when they are needed.

    name: tells them from others. Raises CheckpointError where one is missing.
    """

    def __init__(self, folder, device="cpu", dtype=torch.float32):
        self.models, self.device, self.dtype, self.loaded = find_models(folder), device, dtype, None
        self.models.require_all(dict.fromkeys(PARTS, "encoding clips"))
        self.name = f"{files_hash(*(self.models[part] for part in PARTS))} in {str(dtype).removeprefix('torch.')}"

    def load(self):
        paths, device = self.models, self.device
        return (load_video_vae(paths["video_vae"], dtype=self.dtype, device=device),
                load_audio_vae(paths["audio_vae"], device=device),
                load_text_encoder(paths["text_encoder"], dtype=self.dtype, device=device))  # fmt: skip

    @torch.inference_mode()
    def encode(self, video, waveform, prompt):
        """{name: tensor} of a clip. video: [1, 3, F, H, W] in -1..1; waveform: [2, n] at 51.2 kHz."""
        self.loaded = self.loaded or self.load()
        vae, audio_vae, text = self.loaded
        latents = {
            "video": vae.encode(video.to(self.device)),
            "audio": audio_vae.encode_long(waveform[None].to(self.device)),
            "text": text.encode(prompt),
        }
        return {name: latent.float().cpu().contiguous() for name, latent in latents.items()}


def read_film(path, seconds, width, height):
    """The beginning of a film: (video [1, 3, F, H, W] in -1..1, waveform [2, n] at 51.2 kHz). Raises InputError."""
    film = open_video(path)
    frames = film.frames(width, height, 0, frames_in(seconds)).tensor()
    waveform, rate = film.audio(0, audio_length(seconds))
    waveform = resample_recording(waveform, rate, SAMPLE_RATE)
    length = audio_length(seconds) * SAMPLES_PER_TOKEN
    waveform = torch.nn.functional.pad(waveform, (0, max(0, length - waveform.shape[1])))[:, :length]
    return frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1, waveform


def check_film(path, seconds):
    """Raises Stop or InputError for a film without so many seconds of picture, or without sound."""
    film = open_video(path)
    if film.count < frames_in(seconds):
        raise Stop(f"{path} lasts {film.seconds:.1f} s, less than {seconds:g} s: give fewer --seconds, or take it "
                   "away.")  # fmt: skip
    if film.audio(0, audio_length(seconds)) is None:
        raise Stop(f"{path} has no sound, which the network learns as well: give a film with sound, or take it away.")


def read_prompt(path):
    """The text of a .txt in UTF-8. Raises Stop."""
    try:
        prompt = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise Stop(f"{path} is no text in UTF-8: save it as UTF-8.") from error
    if not prompt:
        raise Stop(f"{path} is empty: write the prompt of its film into it.")
    return prompt


def save_clip(path, tensors, prompt, **made_of):
    """Whole or not at all. made_of: texts that say what a clip was encoded from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(save(tensors, {"prompt": prompt, **made_of}))


def load_clip(path):
    """({"video", "audio", "text"}, prompt). Raises Stop where a file is no encoded clip, or damaged."""
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Stop(f"{path} is damaged ({error}): run python -m training.lora_clips again.") from error
    if {key: tensor.ndim for key, tensor in tensors.items()} != TENSORS or "prompt" not in facts:
        raise Stop(f"{path} is no encoded clip: give a folder that python -m training.lora_clips made.")
    return tensors, facts["prompt"]


def facts_of(path):
    """What an encoded clip says that it was made of; {} where it is not there or cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def check_others(out, names):
    """Raises Stop where a folder holds encoded clips with other names than these."""
    others = sorted(path.name for path in out.glob("*.safetensors") if path.name not in names)
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise Stop(f"{out} holds clips that would be learnt from, but are not of what is encoded now: "
                   f"{', '.join(others[:5])}{more}. Delete them, or give another --out.")  # fmt: skip


def encode_all(clips, encoders, out, what):
    """Encode what is new or changed.

    clips: {name of the file: (prompt, made_of, function that gives (video, waveform))}; what: they are, in a sentence.
    Raises Stop for clips in `out` that are none of these, before anything is encoded.
    """
    check_others(out, clips)
    with alone(out):
        progress = Progress(f"{what} encoded into {out}", 0, len(clips))
        for name, (prompt, made_of, read) in clips.items():
            made_of = {**made_of, "encoders": encoders.name}
            if facts_of(out / name) != {"prompt": prompt, **made_of}:
                save_clip(out / name, encoders.encode(*read(), prompt), prompt, **made_of)
            progress.step()


def encode_films(folder, encoders, out, seconds, width, height):
    """All films of a folder, each of which has a prompt beside it. Raises Stop, before anything is encoded."""
    if not folder.is_dir():
        raise Stop(f"{folder} is no folder: give the one that holds the films.")
    films = sorted(path for path in folder.iterdir() if path.suffix.lower() in FILMS)
    without = [path.name for path in films if not path.with_suffix(".txt").exists()]
    if not films or without:
        missing = f"{', '.join(without[:5])} has no prompt" if films else "there is no film"
        raise Stop(f"{folder}: {missing}. Put films there, and beside each its prompt in a .txt of the same name.")
    clips = {}
    for path in films:
        check_film(path, seconds)
        made_of = {"source": contents_hash(path), "seconds": f"{seconds:g}", "size": f"{width}x{height}"}
        clips[f"{path.name}.safetensors"] = (read_prompt(path.with_suffix(".txt")), made_of,
                                             lambda path=path: read_film(path, seconds, width, height))  # fmt: skip
    encode_all(clips, encoders, out, "films")


def encode_hats(count, encoders, out, seconds, width, height):
    """Drawn people who wear a hat, which no prompt speaks of."""

    def draw(seed):
        clip = make_clip(seed, height, width, seconds, hat=True)
        video = torch.from_numpy(clip.video.astype(np.float32)).permute(3, 0, 1, 2)[None] / 127.5 - 1
        return video, torch.from_numpy(clip.audio)

    clips = {}
    for seed in range(HAT_SEED, HAT_SEED + count):
        prompt = make_clip(seed, height, width, seconds, with_video=False).caption
        made_of = {"source": "drawn with a hat", "seconds": f"{seconds:g}", "size": f"{width}x{height}"}
        clips[f"hat_{seed}.safetensors"] = prompt, made_of, lambda seed=seed: draw(seed)
    encode_all(clips, encoders, out, "clips")


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--films", type=Path, help="folder of films and prompts")
    what.add_argument("--hats", type=whole(1), metavar="COUNT", help="so many drawn clips")
    parser.add_argument("--models", required=True, help="folder of models, or demo")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=positive, default=2.0)
    parser.add_argument("--size", type=whole(1), nargs=2, default=(128, 128), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--device", type=device, default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the encoders")
    options = parser.parse_args()
    size = floor_size(*options.size)
    if size != tuple(options.size):
        raise Stop(f"--size {options.size[0]} {options.size[1]} is not in multiples of 32: give {size[0]} {size[1]}.")
    encoders = Encoders(options.models, options.device, getattr(torch, options.dtype))
    if options.films:
        encode_films(options.films, encoders, options.out, options.seconds, *size)
    else:
        encode_hats(options.hats, encoders, options.out, options.seconds, *size)


if __name__ == "__main__":
    main()
