"""Measure the demo weights on held-out prompts, and write the table into their card.

    python -m training.evaluate --clips 16                   # seeds 0 .. 15, none of which was trained on
    python -m training.evaluate --clips 4 --rows data reconstruction distilled
    python -m training.evaluate --folder magihuman_core/demo # the shipped weights instead of the run's export/

Every row makes the same prompts from the same noise and measures pictures and sounds alone (measure.py). The last
rows are made wrongly on purpose: a measure that does not fall there would measure nothing.
"""

import argparse
import datetime
import hashlib
import json
import re
import time
from pathlib import Path

import numpy as np
import torch

from magihuman_core import (
    Guidance,
    JointDenoiser,
    flow_sigmas,
    load_audio_vae,
    load_dit,
    load_text_encoder,
    load_turbo_vae,
    load_video_vae,
    pack_latents,
    prepare_super_resolution,
    sample_renoise,
    sample_unipc,
    unpack_latents,
)
from magihuman_core.text.prompt import DEFAULT_NEGATIVE_PROMPT
from training import measure
from training.clips import FRAMES, make_clip
from training.common import Stop, add_options, set_up
from training.export import DEMO, refuse_demo
from training.listen import spectra

TOKENS, LATENT = FRAMES + 2, (1, 48, (FRAMES - 1) // 4 + 1, 8, 8)
ROWS = {
    "data": "the drawn clips themselves",
    "reconstruction": "the same through both autoencoders",
    "base": "base, 32 steps, CFG",
    "distilled": "distilled, 8 steps",
    "picture": "distilled, reference picture",
    "driving": "distilled, driving sound",
    "sr": "distilled, then 256x256",
    "upscaled": "distilled, 256x256 by bicubic interpolation",
    "unipc": "distilled weights stepped with UniPC",
    "wrong solver": "control: noise added to an estimate that is not made smaller",
    "wrong shift": "control: shift applied twice",
    "other prompt": "control: made from the prompt of another clip",
    "other sound": "control: sound of another clip",
}


def to_pixels(video):
    """[1, 3, F, H, W] in -1..1 -> uint8 [F, H, W, 3]."""
    return ((video[0].float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()


def from_pixels(video):
    return torch.from_numpy(np.asarray(video, np.float32)).permute(3, 0, 1, 2)[None] / 127.5 - 1


def sample_without_shrinking(model, x, sigmas, disable=True):
    """The re-noising sampler with the noise schedule of another family: x0 + s noise. A plausible mistake."""
    generator = torch.Generator().manual_seed(1)
    for s, s_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        x = model(x, x.new_full((1,), s)) + s_next * torch.randn(x.shape, generator=generator)
    return x


class Demo:
    """All parts of a folder of demo weights, and the ways to make a clip with them."""

    def __init__(self, folder, guidance=None):
        def find(part):
            for path in (folder / part).glob("*.safetensors"):
                return path
            raise Stop(f"{folder} holds no {part}: train it, then run python -m training.export first.")

        self.folder, self.guidance = folder, guidance or Guidance()
        self.text_encoder = load_text_encoder(find("text_encoder"), dtype=torch.float32)
        self.turbo = load_turbo_vae(folder / "turbo_vae", dtype=torch.float32)
        self.vae = load_video_vae(find("vae"), dtype=torch.float32)
        self.audio_vae = load_audio_vae(find("audio_vae"))
        self.networks = {}
        for role, part in (("base", "base"), ("distilled", "distill"), ("sr", "540p_sr")):
            if (folder / part).is_dir():
                positions = "v1" if role == "sr" else "v2"
                self.networks[role] = load_dit(find(part), dtype=torch.float32, positions=positions)

    def generate(self, prompt, seed, role="distilled", *, sampler=None, sigmas=None, image=None, driving=None):
        """Latents (video, audio) of one clip. image: a latent of one frame; driving: a latent [1, 64, A]."""
        generator = torch.Generator().manual_seed(seed)
        audio = torch.randn((1, 64, TOKENS), generator=generator) if driving is None else driving
        x, shapes = pack_latents(torch.randn(LATENT, generator=generator), audio)
        frozen = None
        if image is not None:
            mask = torch.ones(1, 1, LATENT[2], 1, 1)
            mask[:, :, 0] = 0
            values = torch.zeros(LATENT)
            values[:, :, :1] = image
            frozen = values, mask
        text = self.text_encoder.encode(prompt)
        negative = self.text_encoder.encode(DEFAULT_NEGATIVE_PROMPT) if role == "base" else None
        model = JointDenoiser(
            self.networks[role], shapes, text, negative, self.guidance, frozen_video=frozen,
            frozen_audio=None if driving is None else (driving, torch.zeros(1, 1, 1)),
        )  # fmt: skip
        steps = 32 if role == "base" else 8
        sigmas = flow_sigmas(steps) if sigmas is None else sigmas
        sampler = sampler or (sample_unipc if role == "base" else sample_renoise)
        options = {"extra_args": {"seed": seed}} if sampler is sample_renoise else {}
        x = sampler(model, x, sigmas, disable=True, **options)
        return unpack_latents(x, shapes)

    def enlarge(self, prompt, seed, video, audio, factor=2):
        """The video latent at `factor` times the size, by the super-resolution network."""
        generator = torch.Generator().manual_seed(seed + 10_000)
        height, width = (side * factor for side in video.shape[3:])
        noise = torch.randn((*video.shape[:3], height, width), generator=generator)
        start, context = prepare_super_resolution(
            video, audio, height, width, video_noise=noise, audio_noise=torch.randn(audio.shape, generator=generator))
        x, shapes = pack_latents(start, context)
        model = JointDenoiser(self.networks["sr"], shapes, self.text_encoder.encode(prompt),
                              frozen_audio=(context, torch.zeros(1, 1, 1)))  # fmt: skip
        return unpack_latents(sample_unipc(model, x, flow_sigmas(5), disable=True), shapes)[0]

    def decode(self, video, audio):
        """(pixels uint8 [F, H, W, 3], waveform [2, n])."""
        return to_pixels(self.turbo.decode(video)), self.audio_vae.decode(audio)[0].numpy()


def spectrum_error(a, b):
    """Mean difference in dB of the spectra of two waveforms, 60 dB deep, below 6 kHz."""
    levels = []
    for waveform in (a, b):
        power = spectra(waveform)[:, :240]
        levels.append(10 * np.log10(power + 1e-6 * 0.02))
    return float(np.abs(levels[0] - levels[1]).mean())


def scores(videos, waveforms, clips):
    """The measures every row has. videos may be larger than drawn: attributes and sync do not mind."""
    heard = [measure.read_syllables(waveform) for waveform in waveforms]
    asked = [[name for name, _, _ in clip.syllables] for clip in clips]
    seen = [measure.read_attributes(video) for video in videos]
    wanted = [clip.attributes for clip in clips]
    people = [clip.attributes["person"] for clip in clips]
    voices = [measure.read_person(waveform) == person for waveform, person in zip(waveforms, people, strict=True)]
    return {
        "sync": float(np.mean([measure.sync(v, s) for v, s in zip(videos, waveforms, strict=True)])),
        "shifted sync": float(np.mean([measure.shifted_sync(v, s) for v, s in zip(videos, waveforms, strict=True)])),
        "syllable errors": measure.syllable_error_rate(heard, asked),
        "attributes": measure.attribute_accuracy(seen, wanted),
        "voice": float(np.mean(voices)),
        "sharpness": float(np.mean([measure.sharpness(v) for v in videos])),
    }


@torch.inference_mode()
def make_row(name, demo, clips, cache):
    """Make the clips of one row: (videos, waveforms, further numbers)."""
    extra = {}
    if name == "data":
        return [c.video for c in clips], [c.audio for c in clips], extra
    if name == "reconstruction":
        videos, waveforms, noise = [], [], []
        for clip in clips:
            video, waveform = demo.decode(demo.vae.encode(from_pixels(clip.video)),
                                          demo.audio_vae.encode(torch.from_numpy(clip.audio)[None]))  # fmt: skip
            videos.append(video)
            waveforms.append(waveform)
            noise.append(spectrum_error(waveform, clip.audio))
        extra["PSNR dB"] = float(np.mean([measure.psnr(v, c.video) for v, c in zip(videos, clips, strict=True)]))
        extra["spectrum error dB"] = float(np.mean(noise))
        return videos, waveforms, extra
    if name == "upscaled":
        videos, waveforms = cached(demo, clips, cache)[1:]
        enlarged = [torch.nn.functional.interpolate(from_pixels(v)[0].transpose(0, 1), scale_factor=2, mode="bicubic")
                    for v in videos]  # fmt: skip
        return [to_pixels(v.transpose(0, 1)[None]) for v in enlarged], waveforms, extra
    if name == "sr":
        latents, _, waveforms = cached(demo, clips, cache)
        videos = []
        for clip, (video, audio) in zip(clips, latents, strict=True):
            videos.append(to_pixels(demo.turbo.decode(demo.enlarge(clip.caption, clip.seed, video, audio))))
        return videos, waveforms, extra
    if name == "other sound":
        _, videos, waveforms = cached(demo, clips, cache)
        return videos, waveforms[1:] + waveforms[:1], extra
    if name == "distilled":
        _, videos, waveforms = cached(demo, clips, cache)
        again = [demo.decode(*demo.generate(clips[0].caption, 5000 + k)) for k in range(4)]
        for key, value in measure.variety([v for v, _ in again]).items():
            extra[f"variety of {key}"] = value
        return videos, waveforms, extra

    videos, waveforms, firsts, kept = [], [], [], []
    shift = flow_sigmas(8)
    options = {
        "base": {"role": "base"},
        "unipc": {"sampler": sample_unipc},
        "wrong solver": {"sampler": sample_without_shrinking},
        "wrong shift": {"sigmas": 5 * shift / (1 + 4 * shift)},
    }.get(name, {})
    for index, clip in enumerate(clips):
        own = dict(options)
        prompt = clips[index - 1].caption if name == "other prompt" else clip.caption
        if name == "picture":
            own["image"] = demo.vae.encode(from_pixels(clip.video[:1]))
        if name == "driving":
            own["driving"] = demo.audio_vae.encode(torch.from_numpy(clip.audio)[None])
        video, waveform = demo.decode(*demo.generate(prompt, clip.seed, **own))
        videos.append(video)
        waveforms.append(clip.audio if name == "driving" else waveform)
        if name == "picture":
            given = to_pixels(demo.turbo.decode(own["image"]))
            firsts.append(measure.psnr(video[:1], given))
            image, found = measure.read_attributes(clip.video), measure.read_attributes(video)
            kept.append(measure.attribute_accuracy(found, {k: v for k, v in image.items() if k != "mood"}))
        if name == "driving":
            loudness = [measure.loudness(audio, FRAMES) for audio in (waveform, clip.audio)]
            kept.append(float(np.corrcoef(*loudness)[0, 1]))
    if name == "picture":
        extra["first frame dB"], extra["identity"] = float(np.mean(firsts)), float(np.mean(kept))
    if name == "driving":
        extra["sound kept"] = float(np.mean(kept))
    return videos, waveforms, extra


def cached(demo, clips, cache):
    """The distilled network's clips, made once: (latents, videos, sounds)."""
    if "distilled" not in cache:
        latents = [demo.generate(clip.caption, clip.seed) for clip in clips]
        decoded = [demo.decode(*pair) for pair in latents]
        cache["distilled"] = latents, [v for v, _ in decoded], [s for _, s in decoded]
    return cache["distilled"]


def super_resolution_gain(demo, clips):
    """PSNR against scenes drawn at 256x256: of the network's picture, and of plain upscaling of the small one."""
    found, plain = [], []
    with torch.inference_mode():
        for clip in clips:
            large = make_clip(clip.seed, 256)
            small = demo.vae.encode(from_pixels(clip.video))
            audio = demo.audio_vae.encode(torch.from_numpy(clip.audio)[None])
            enlarged = demo.turbo.decode(demo.enlarge(clip.caption, clip.seed, small, audio))
            video = demo.turbo.decode(small)[0].transpose(0, 1)
            bicubic = torch.nn.functional.interpolate(video, scale_factor=2, mode="bicubic").transpose(0, 1)
            found.append(measure.psnr(to_pixels(enlarged), large.video))
            plain.append(measure.psnr(to_pixels(bicubic[None]), large.video))
    return {"super-resolution dB": float(np.mean(found)), "bicubic dB": float(np.mean(plain))}


def table(results):
    """The results as Markdown."""
    columns = ["sync", "shifted sync", "syllable errors", "attributes", "voice", "sharpness"]
    lines = ["| | " + " | ".join(columns) + " | more |", "|---" * (len(columns) + 2) + "|"]
    for name, row in results.items():
        more = ", ".join(f"{key} {value:.2f}" for key, value in row.items() if key not in columns)
        cells = [f"{row[c]:.2f}" if c in ("sync", "shifted sync") else f"{row[c]:.1f}" if c == "sharpness"
                 else f"{100 * row[c]:.0f} %" for c in columns]  # fmt: skip
        lines.append(f"| {ROWS[name]} | " + " | ".join(cells) + f" | {more} |")
    return "\n".join(lines)


def folder_hash(folder):
    """Twelve hexadecimal digits that tell these files of weights from others."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def with_earlier_rows(path, weights, results):
    """The rows of this and of earlier runs on the same weights, in order; kept in a file. Others are dropped."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept.get("weights") != weights:
        kept = {"weights": weights, "rows": {}}
    rows = {**kept["rows"], **results}
    kept["rows"] = {name: rows[name] for name in ROWS if name in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept))
    return kept["rows"]


def write_card(path, stamp, text):
    """Put a table between the marks of a card; a card of its own where there is none."""
    marks = "<!-- scores -->", "<!-- end of scores -->"
    card = path.read_text() if path.exists() else "# Scores\n\n" + "\n".join(marks) + "\n"
    block = f"{marks[0]}\n{stamp}\n\n{text}\n{marks[1]}"
    path.write_text(re.sub(f"{marks[0]}.*{marks[1]}", lambda _: block, card, flags=re.DOTALL))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--folder", type=Path,
                        help=f"of the weights; default: export/ in the run's folder. The shipped ones: {DEMO}")
    parser.add_argument("--guidance", type=float, nargs=3, default=(5.0, 2.0, 5.0), help="video, late, audio")
    parser.add_argument("--card", action="store_true",
                        help="table into CARD.md in that folder, with earlier rows of the same weights")
    parser.add_argument("--overwrite-demo", action="store_true", help="with --card: also the card that is shipped")
    add_options(parser)
    options = parser.parse_args()
    set_up(options)
    folder = options.folder or options.run / "export"
    if options.card:
        refuse_demo(folder, options.overwrite_demo)
    demo = Demo(folder, Guidance(*options.guidance))
    clips = [make_clip(seed) for seed in range(options.first_seed, options.first_seed + options.clips)]
    results, cache = {}, {}
    for name in options.rows:
        started = time.monotonic()
        videos, waveforms, extra = make_row(name, demo, clips, cache)
        results[name] = {**scores(videos, waveforms, clips), **extra}
        if name == "sr":
            results[name].update(super_resolution_gain(demo, clips[:4]))
        numbers = {key: round(value, 3) for key, value in results[name].items()}
        print(f"{name} ({time.monotonic() - started:.0f} s): {json.dumps(numbers)}", flush=True)
    if options.card:
        path = options.run / f"scores_{options.first_seed}_{options.clips}.json"
        results = with_earlier_rows(path, folder_hash(folder), results)
    print(table(results))
    if options.card:
        last = options.first_seed + options.clips - 1
        stamp = f"Seeds {options.first_seed} to {last}, {datetime.date.today().isoformat()}, `training/evaluate.py`."
        write_card(folder / "CARD.md", stamp, table(results))


if __name__ == "__main__":
    main()
