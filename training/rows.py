"""The rows of the evaluation: how each makes its clips, and what it measures of them besides what all rows have.

Every row takes the prompts of the same held-out seeds. What is kept of a clip stands in a `JointLatent`, as in the
product. Rows called control are made wrongly on purpose.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from magihuman_core import flow_sigmas, sample_unipc
from magihuman_core.sampling.frozen import empty_latent, keep_audio, keep_start
from magihuman_core.sampling.regenerate import keep_still
from magihuman_core.sizes import audio_length
from training import measure
from training.canvas import View
from training.captions import make_caption
from training.clips import make_clip
from training.data import SHAPES
from training.demo import Demo, from_pixels, to_pixels
from training.listen import spectra
from training.masks import MOUTH_BOX


@dataclass(frozen=True)
class Row:
    """label: in the table. make(job) -> (videos, waveforms, further numbers), of clips of this shape and length.

    quiet: share of pauses in the drawn clips; random where not given. given: measures that would only read what is
    given, and are left out.
    """

    label: str
    make: Callable
    shape: str = "square"
    seconds: int = 2
    quiet: float | None = None
    given: tuple = ()


SOUND = ("syllable errors", "voice")
PICTURE = ("attributes", "sharpness")


class Job:
    """The clips of one shape and length as they were drawn, and those of the distilled network, each made once."""

    def __init__(self, demo: Demo, seeds, shape, seconds, quiet=None):
        self.demo, self.shape, self.seconds = demo, SHAPES[shape], seconds
        self.clips = [make_clip(seed, *self.shape, seconds, quiet=quiet) for seed in seeds]
        self.kept = {}

    @property
    def empty(self):
        height, width = self.shape
        return empty_latent(width, height, audio_length(self.seconds), (48, 64))

    @property
    def latents(self):
        """Of the drawn clips."""
        return self.once("latents", lambda: [self.demo.encode(clip) for clip in self.clips])

    @property
    def distilled(self):
        """(latents, videos, waveforms) that the distilled network makes from the prompts."""
        return self.once("distilled", self.make_distilled)

    def make_distilled(self):
        made = [self.demo.generate(clip.caption, clip.seed, latent=self.empty) for clip in self.clips]
        decoded = [self.demo.decode(*pair) for pair in made]
        return made, [video for video, _ in decoded], [waveform for _, waveform in decoded]

    def once(self, name, make):
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def generate(self, latents=None, prompts=None, **options):
        """(videos, waveforms) with these parts kept and by these prompts; those of the clips where not given."""
        latents = latents or [self.empty] * len(self.clips)
        prompts = prompts or [clip.caption for clip in self.clips]
        made = [self.demo.decode(*self.demo.generate(prompt, clip.seed, latent=latent, **options))
                for prompt, clip, latent in zip(prompts, self.clips, latents, strict=True)]  # fmt: skip
        return [video for video, _ in made], [waveform for _, waveform in made]

    def others(self, things):
        """Those of the next clip each."""
        return things[1:] + things[:1]


def mean(numbers):
    return float(np.mean(list(numbers)))


def mean_sync(videos, waveforms):
    return mean(measure.sync(video, waveform) for video, waveform in zip(videos, waveforms, strict=True))


def data(job):
    return [clip.video for clip in job.clips], [clip.audio for clip in job.clips], {}


def reconstruction(job):
    decoded = [job.demo.decode(latent.video, latent.audio) for latent in job.latents]
    videos, waveforms = [video for video, _ in decoded], [waveform for _, waveform in decoded]
    return videos, waveforms, {
        "PSNR dB": mean(measure.psnr(v, c.video) for v, c in zip(videos, job.clips, strict=True)),
        "spectrum error dB": mean(spectrum_error(w, c.audio) for w, c in zip(waveforms, job.clips, strict=True)),
    }  # fmt: skip


def spectrum_error(a, b):
    """Mean difference in dB of the spectra of two waveforms, 60 dB deep, below 6 kHz."""
    levels = [10 * np.log10(spectra(waveform)[:, :240] + 1e-6 * 0.02) for waveform in (a, b)]
    return float(np.abs(levels[0] - levels[1]).mean())


def base(job):
    return *job.generate(role="base"), {}


def distilled(job):
    return *job.distilled[1:], {}


def distilled_with_variety(job):
    again = [job.demo.decode(*job.demo.generate(job.clips[0].caption, 5000 + k)) for k in range(4)]
    varieties = measure.variety([video for video, _ in again])
    return *job.distilled[1:], {f"variety of {key}": value for key, value in varieties.items()}


def image(job):
    """A reference image: the first frame of the drawn clip."""
    images = [job.demo.vae.encode(from_pixels(clip.video[:1])) for clip in job.clips]
    videos, waveforms = job.generate([keep_still(job.empty, 0, image) for image in images])
    given = [to_pixels(job.demo.turbo.decode(image)) for image in images]
    kept = []
    for clip, video in zip(job.clips, videos, strict=True):
        wanted = {key: value for key, value in measure.read_attributes(clip.video).items() if key != "mood"}
        kept.append(measure.attribute_accuracy(measure.read_attributes(video), wanted))
    return videos, waveforms, {
        "first frame dB": mean(measure.psnr(v[:1], g) for v, g in zip(videos, given, strict=True)),
        "identity": mean(kept),
    }  # fmt: skip


def driving(job):
    """Driving audio: the drawn clip's own."""
    videos, waveforms = job.generate([keep_audio(job.empty, latent.audio) for latent in job.latents])
    loudness = [[measure.loudness(audio, len(video)) for audio in (waveform, clip.audio)]
                for video, waveform, clip in zip(videos, waveforms, job.clips, strict=True)]  # fmt: skip
    kept = mean(np.corrcoef(*pair)[0, 1] for pair in loudness)
    return videos, [clip.audio for clip in job.clips], {"sound kept": kept}


def last_frame(job):
    """A wanted last frame: that of the drawn clip."""
    latents = [keep_frame(job.empty, latent.video, -1) for latent in job.latents]
    videos, waveforms = job.generate(latents)
    wanted = [to_pixels(job.demo.turbo.decode(latent.video))[-1:] for latent in job.latents]
    without, steps = job.distilled[1], [step_sizes(video) for video in videos]
    return videos, waveforms, {
        "last frame dB": mean(measure.psnr(v[-1:], w) for v, w in zip(videos, wanted, strict=True)),
        "without dB": mean(measure.psnr(v[-1:], w) for v, w in zip(without, wanted, strict=True)),
        "step at the join": mean(step[-4] for step in steps),  # the last latent frame is four frames
        "usual step": mean(np.median(step) for step in steps),
    }  # fmt: skip


def keep_frame(latent, video, place):
    """Keep one latent frame of a video."""
    values, mask = latent.video.clone(), latent.video_mask.clone()
    values[:, :, place], mask[:, :, place] = video[:, :, place], 0
    return replace(latent, video=values, video_mask=mask)


def extend(job):
    """The first half of the drawn clip is given, in both streams; measured is the other half."""
    frames = job.empty.video.shape[2] // 2
    first = 4 * frames - 3
    latents = [keep_start(job.empty, latent.video[:, :, :frames], latent.audio[:, :, :first]) for latent in job.latents]
    videos, waveforms = job.generate(latents)
    steps = [step_sizes(video) for video in videos]
    new = mean_sync([v[first:] for v in videos], [w[:, first * measure.SAMPLES_PER_TOKEN :] for w in waveforms])
    return videos, waveforms, {
        "sync of the new half": new,
        "step at the join": mean(step[first - 1] for step in steps),
        "usual step": mean(np.median(step) for step in steps),
    }  # fmt: skip


def step_sizes(video):
    """Mean absolute difference from every frame to the next, 0..255: [F - 1]."""
    return np.abs(np.diff(video.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))


def dub(job):
    """The drawn clip is kept but for the mouth, and speaks the next clip's words and sound."""
    spoken = job.others(job.clips)
    sounds = [other.audio for other in spoken]
    latents = []
    for latent, other in zip(job.latents, job.others(job.latents), strict=True):
        mask = torch.zeros_like(latent.video_mask)
        rows, columns = View(*mask.shape[3:]).box(*MOUTH_BOX)
        mask[..., rows, columns] = 1
        latents.append(keep_audio(replace(latent, video_mask=mask), other.audio))
    prompts = [make_caption(clip.attributes, other.syllables) for clip, other in zip(job.clips, spoken, strict=True)]
    videos, _ = job.generate(latents, prompts)
    before = [to_pixels(job.demo.turbo.decode(latent.video)) for latent in job.latents]
    rows, columns = View(*job.shape).box(*MOUTH_BOX)
    changes = []
    for video, old in zip(videos, before, strict=True):
        change = np.abs(video.astype(np.float32) - old).mean(axis=(0, 3))
        change[rows, columns] = np.nan
        changes.append(np.nanmean(change))
    return videos, sounds, {
        "sync with the old sound": mean_sync(videos, [clip.audio for clip in job.clips]),
        "undubbed": mean_sync([clip.video for clip in job.clips], sounds),
        "change outside, of 255": mean(changes),
    }  # fmt: skip


def sound_for_video(job):
    """The drawn clip's video is given, its words at times that no prompt tells; its sound is made.

    Control: sound made from the same prompt without the video.
    """
    latents = [replace(latent, video_mask=torch.zeros_like(latent.video_mask)) for latent in job.latents]
    _, waveforms = job.generate(latents)
    videos = [clip.video for clip in job.clips]
    return videos, waveforms, {"control: sync of sound made without it": mean_sync(videos, job.distilled[2])}


def super_resolution(job):
    """Twice the size by the network, from what the distilled network made; and against scenes drawn so large."""
    made, _, waveforms = job.distilled
    videos = [to_pixels(job.demo.turbo.decode(job.demo.enlarge(clip.caption, clip.seed, *pair)))
              for clip, pair in zip(job.clips, made, strict=True)]  # fmt: skip
    return videos, waveforms, super_resolution_gain(job)


def super_resolution_gain(job):
    """PSNR against scenes drawn at twice the size, and sharpness: of the network, and of interpolation."""
    demo, pairs = job.demo, []
    for clip in job.clips:
        large = make_clip(clip.seed, *(2 * side for side in job.shape), job.seconds).video
        latent = demo.encode(clip)
        enlarged = to_pixels(demo.turbo.decode(demo.enlarge(clip.caption, clip.seed, latent.video, latent.audio)))
        pairs.append((large, enlarged, bicubic(to_pixels(demo.turbo.decode(latent.video)))))
    return {
        "super-resolution dB": mean(measure.psnr(enlarged, large) for large, enlarged, _ in pairs),
        "bicubic dB": mean(measure.psnr(plain, large) for large, _, plain in pairs),
        "gradient of bicubic": mean(measure.sharpness(e) / measure.sharpness(plain) for _, e, plain in pairs),
    }


def bicubic(video):
    """Frames uint8 at twice the size."""
    frames = torch.from_numpy(video.astype(np.float32)).permute(0, 3, 1, 2)
    large = F.interpolate(frames, scale_factor=2, mode="bicubic")
    return large.clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()


def upscaled(job):
    _, videos, waveforms = job.distilled
    return [bicubic(video) for video in videos], waveforms, {}


def unipc(job):
    return *job.generate(sampler=sample_unipc), {}


def wrong_solver(job):
    return *job.generate(sampler=sample_without_shrinking), {}


def sample_without_shrinking(model, x, sigmas, disable=True):
    """The re-noising sampler with the noise schedule of another family: x0 + s noise. A plausible mistake."""
    generator = torch.Generator().manual_seed(1)
    for s, s_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        x = model(x, x.new_full((1,), s)) + s_next * torch.randn(x.shape, generator=generator)
    return x


def wrong_shift(job):
    shift = flow_sigmas(8)
    return *job.generate(sigmas=5 * shift / (1 + 4 * shift)), {}


def other_prompt(job):
    return *job.generate(prompts=job.others([clip.caption for clip in job.clips])), {}


def other_sound(job):
    _, videos, waveforms = job.distilled
    return videos, job.others(waveforms), {}


ROWS = {
    # Of the drawn clips everything is measured: what the measures themselves can tell.
    "data": Row("the drawn clips themselves", data),
    "reconstruction": Row("the same through both autoencoders", reconstruction),
    "reconstruction portrait": Row("the same, 96x160", reconstruction, "portrait"),
    "reconstruction landscape": Row("the same, 160x96", reconstruction, "landscape"),
    "base": Row("base, 32 steps, CFG", base),
    "distilled": Row("distilled, 8 steps", distilled_with_variety),
    "six seconds": Row("distilled, 6 s in one window", distilled, seconds=6),
    "portrait": Row("distilled, 96x160", distilled, "portrait"),
    "landscape": Row("distilled, 160x96", distilled, "landscape"),
    "picture": Row("distilled, reference picture", image),
    "driving": Row("distilled, driving sound", driving, given=SOUND),
    "last frame": Row("distilled, last frame given", last_frame),
    "extend": Row("distilled, first half given", extend),
    "dub": Row("distilled, mouth made anew for another sound", dub, given=SOUND),
    "sound for video": Row("distilled, sound for a given video of 4 s", sound_for_video, seconds=4, quiet=0.5,
                           given=PICTURE),
    "sr": Row("distilled, then 256x256", super_resolution),
    "sr portrait": Row("distilled, then 192x320", super_resolution, "portrait"),
    "sr landscape": Row("distilled, then 320x192", super_resolution, "landscape"),
    "upscaled": Row("distilled, 256x256 by bicubic interpolation", upscaled),
    "unipc": Row("distilled weights stepped with UniPC", unipc),
    "wrong solver": Row("control: noise added to an estimate that is not made smaller", wrong_solver),
    "wrong shift": Row("control: shift applied twice", wrong_shift),
    "other prompt": Row("control: made from the prompt of another clip", other_prompt),
    "other sound": Row("control: sound of another clip", other_sound),
}
