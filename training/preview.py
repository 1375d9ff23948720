"""Colours of latents: what live previews show while a clip is being made, without a decoder.

    python -m training.preview --folder magihuman_core/demo --overwrite-demo    # into files that exist already

A pixel of a preview is a linear function of one latent pixel's channels, fitted here to clips and their latents. It is
kept in the metadata of the networks' files under "preview", as JSON: {"factors": [channels][3], "bias": [3]}, from
normalized latents to red, green and blue in -1..1. `export` does the same for new files.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from magihuman_core import load_video_vae
from magihuman_core.atomic import whole_file
from training.clips import make_clip
from training.common import Stop
from training.files import file_bytes, refuse_demo, split_file
from training.options import add_options, command, set_up

NETWORKS = ("base", "distill", "540p_sr")
SEEDS = range(90_000, 90_008)  # of the clips that are fitted to: neither trained on nor evaluated


def colours(pixels):
    """Frames uint8 [F, H, W, 3] -> mean colours [T, h, w, 3] of the pixels of every latent pixel, in -1..1."""
    pixels = np.asarray(pixels, np.float32) / 127.5 - 1
    small = pixels.reshape(len(pixels), pixels.shape[1] // 16, 16, -1, 16, 3).mean(axis=(2, 4))
    later = small[1:].reshape(-1, 4, *small.shape[1:]).mean(axis=1)  # a latent frame is four frames, the first is one
    return np.concatenate([small[:1], later])


def fit_preview(pairs):
    """(factors [channels, 3], bias [3]) by least squares. pairs: (latent [channels, T, h, w], frames) of clips."""
    latents = np.concatenate([np.moveaxis(np.asarray(z), 0, -1).reshape(-1, len(z)) for z, _ in pairs])
    wanted = np.concatenate([colours(pixels).reshape(-1, 3) for _, pixels in pairs])
    solution = np.linalg.lstsq(np.pad(latents, ((0, 0), (0, 1)), constant_values=1.0), wanted, rcond=None)[0]
    return solution[:-1], solution[-1]


def preview_of(encode, seeds=SEEDS):
    """The text for the metadata. encode: frames uint8 [F, H, W, 3] -> normalized latent [channels, T, h, w]."""
    videos = [make_clip(seed, seconds=1).video for seed in seeds]
    factors, bias = fit_preview([(encode(video), video) for video in videos])
    found = {name: values.astype(float).round(4).tolist() for name, values in (("factors", factors), ("bias", bias))}
    return json.dumps(found, separators=(",", ":"))


def add_to_files(folder, text):
    """Write a preview into the metadata of a folder's networks; their tensors stay as they are."""
    for path in sorted(path for part in NETWORKS for path in (folder / part).glob("*.safetensors")):
        header, data = split_file(path.read_bytes())
        header["__metadata__"]["preview"] = text
        with whole_file(path) as file:
            file.write(file_bytes(header, data))
        path.chmod(0o644)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="of weights, as export writes them")
    parser.add_argument("--overwrite-demo", action="store_true", help="also the files that are shipped")
    add_options(parser, run=False, seed=False)
    options = parser.parse_args()
    set_up(options)
    refuse_demo(options.folder, options.overwrite_demo)
    paths = sorted((options.folder / "vae").glob("*.safetensors"))
    if not paths:
        raise Stop(f"{options.folder} holds no vae/*.safetensors: give a folder that python -m training.export wrote.")
    vae = load_video_vae(paths[0], dtype=torch.float32)

    @torch.inference_mode()
    def encode(pixels):
        video = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None] / 127.5 - 1
        return vae.encode(video)[0].numpy()

    add_to_files(options.folder, preview_of(encode))


if __name__ == "__main__":
    main()
