"""From a prompt, an image and a voice to a clip: all parts in their order, one in memory at a time.

    text encoder -> video VAE (reference image) -> audio VAE (driving audio)
    -> network -> [super-resolution network] -> audio decoder -> video decoder
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..errors import InputError, shown
from ..loading.folder import ModelFolder, find_models
from ..media.frames import Frames
from ..media.mask import check_edge
from ..media.waveform import OUTPUT_RATE
from ..recipes import BASE, DEMO_SIDE
from ..runtime.devices import release_memory
from ..runtime.parallel import check_ranks
from ..sampling.frozen import JointLatent
from ..sampling.regenerate import retake_times
from ..sampling.windows import shared_frames
from ..sizes import FPS, PIXELS_PER_LATENT, PIXELS_PER_TOKEN, decoded_frames, fit_area, latent_of_frame
from ..weights.dit_keys import network_config
from . import stages
from .clip import Clip
from .edits import Extension, Mask, Regeneration, read_mask
from .live import CARRIED, Live, check_carried, check_stream_rate
from .making import Making, cut_to_shorter
from .parts import Parts, choose_device
from .request import (
    Pass,
    Picture,
    Progress,
    Prompt,
    Request,
    Size,
    Waveform,
    check_memory_options,
    make_request,
    read_audio,
)
from .saved import SavedClip, check_target, load_clip
from .shares import Watcher, planned, planned_decoding
from .source import Source, open_source

P = ParamSpec("P")
Result = TypeVar("Result")
log = logging.getLogger(__name__)


class MagiHumanPipeline:
    """Makes clips with the models of a folder.

    Each part is loaded when it is needed and released after it, so that memory never holds two.
    """

    def __init__(self, models: ModelFolder, *, device: str | torch.device = "auto", **options: Any) -> None:
        """options: as for from_folder."""
        self.parts = Parts(models, choose_device(device, options.get("crew")), **options)
        self.watcher: Watcher | None = None  # the progress of a clip that is being made, where it wants to know stages

    @classmethod
    def from_folder(cls, path: str | Path, *, parts: Mapping[str, str | Path] | None = None,
                    **options: Any) -> MagiHumanPipeline:
        """Find the models of a folder (see loading/folder.py), or the built-in ones of "demo".

        parts: a file or folder for a part by name, such as {"distilled": "networks/mine.safetensors"}, instead
        of what the folder holds. options:
        device: "auto" takes CUDA where there is one.
        dtype: of network and text encoder, see load_dit; None: bfloat16, or the 8 bits that a file has its weights
        in, but float32 for small models on a CPU.
        resident_blocks: how many of the network's blocks stay on the device, None: as many as fit (see
        runtime/plan.py). stream_from: where the others come from, "memory" or "file"; None: memory, where they fit.
        fuse: elementwise work of the networks through torch.compile, see load_dit.
        tile: side of the squares a video VAE decodes, in latent pixels (16 pixels each); None: whole frames, or the
        largest squares that fit.
        loras: (file, strength) of each LoRA for the base or distilled network.
        keep: parts wait in main memory for the next clip, where there is room, rather than being read
        anew.
        crew: the processes that help to make each clip, see crew.py. Raises InputError and CheckpointError.
        """
        return cls(find_models(path, parts), **options)

    def generate(self, prompt: Prompt, *, clip: str | Path | Clip | None = None, image: Picture | None = None,
                 keyframes: Mapping[float | str, Picture] | None = None, loop: bool = False,
                 audio: str | Path | Waveform | None = None, seconds: float | None = None, width: int | None = None,
                 height: int | None = None, seed: int = 0, denoise: float = 1.0, progress: Progress | None = None,
                 lazy: bool = False, save_latents: str | Path | None = None, **options: Any) -> Clip:
        """Make one clip.

        prompt: what is seen and heard; or a script, (seconds, prompt) of each part of the clip.
        clip: an old one that is made anew with its own audio (or the given one); see denoise.
        image: the first frame, cropped to the clip's aspect. keyframes: pictures that the clip shows at other times, by
        seconds or "last"; loop: it ends as it begins.
        audio: what drives the clip, a file or (waveform [channels, samples], rate), of any length. The clip's audio is
        this recording itself, at 44.1 kHz, and not what the audio VAE makes of it.
        seconds: length; default 4, or all of the script or of the audio (which is cut where seconds is less, and
        followed by silence where it is more).
        width, height: of the base clip in pixels, floored to multiples of 32; default: with a first picture its shape,
        else the model's own, or clip's.
        seed: all noise comes from it, as in ComfyUI (see sampling/noise.py).
        denoise: below 1 the old clip shows through. The schedule is steep: 0.3 already takes a new look (docs/guides).
        progress: called with (stage, done, total).
        lazy: decode the frames only when they are read or saved, window by window, so that memory does not grow with
        the clip's length.
        save_latents: a .safetensors file to write before anything is decoded; see `decode`.
        options: what all ways to make a clip take:
        mode: "distilled" (few steps, no guidance) or "base" (with guidance away from `negative`, default
        DEFAULT_NEGATIVE_PROMPT); None: what the folder has, distilled first. steps, guidance: default: the mode's
        (recipes.py).
        upscale: "540p", "1080p" or (width, height): a super-resolution pass of sr_steps.
        window, overlap: seconds that are made in one piece, default what the network was trained on, and that
        neighbouring ones share; a clip longer than a window is made in several, blended in every step.
        anchor: each window sees the last picture that is given before it, so that face and colors stay; not for clips
        whose scene changes. See Windows.anchored.
        Video and audio are cut to the shorter of the two.
        Raises InputError and CheckpointError, before anything is computed where that can be known.
        """
        return next(self.generate_seeds(
            prompt, [seed], clip=clip, image=image, keyframes=keyframes, loop=loop, audio=audio, seconds=seconds,
            width=width, height=height, denoise=denoise, progress=progress, lazy=lazy,
            save_latents=None if save_latents is None else [save_latents], **options))

    def generate_seeds(self, prompt: Prompt, seeds: Sequence[int], *, clip: str | Path | Clip | None = None,
                       progress: Progress | None = None, lazy: bool = False,
                       save_latents: Sequence[str | Path] | None = None, **options: Any) -> Iterator[Clip]:
        """One clip for each seed, all else as for `generate`; the models are loaded once for all of them.

        save_latents: a file for each seed.
        """
        if not isinstance(seeds, Sequence) or not seeds:
            raise InputError(f"seeds is {shown(seeds)}, expected a list of at least one.")
        targets = [check_target(path) for path in save_latents or ()]
        if targets and len(targets) != len(seeds):
            raise InputError(f"There are {len(targets)} files for the latents of {len(seeds)} seeds. Give one each.")
        if clip is None:
            if options.get("denoise", 1.0) != 1.0:
                raise InputError("denoise below 1 needs a clip to begin with. Give one, or leave denoise out.")
            return self._make(Making(self._request(prompt, seeds, **options)), progress, lazy, targets)
        if options.pop("seconds", None) is not None:
            raise InputError("seconds cannot be chosen for a clip made of another: it has the other one's length.")
        source = open_source(clip)
        audio = options.pop("audio", None)
        request = self._request_for(source, prompt, seeds, **options)
        heard = None if audio is None else read_audio(audio, None)
        return self._make(Regeneration(request, source, heard), progress, lazy, targets)

    def decode(self, latents: str | Path, *, progress: Progress | None = None, lazy: bool = False) -> Clip:
        """The clip of latents that `generate` saved, with its sound: that of the network, or the one that drove it.

        progress, lazy: as for generate. Raises InputError and CheckpointError.
        """
        saved = load_clip(latents)
        check_memory_options(self.parts)
        if "turbo_vae" not in self.parts.models:
            self.parts.models.require("video_vae", "decoding the picture")
        if saved.waveform is None:
            self.parts.models.require("audio_vae", "sound")

        def finish(frames: Frames, decoded: Tensor | None) -> tuple[Frames, Tensor]:
            waveform = saved.waveform if decoded is None else decoded
            assert waveform is not None  # noqa: S101  a file has the one or the other
            return cut_to_shorter(frames, waveform)

        progress = progress or _silent
        self._watch(progress, planned_decoding(saved.video.shape, saved.audio is not None,
                                               self.parts.models.is_demo))
        clip = self._decode(saved, finish, progress)
        return clip if lazy else clip.decoded()

    def dub(self, clip: str | Path | Clip, audio: str | Path | Waveform, *, mask: Mask | None = None,
            edge: int | None = None,
            prompt: Prompt | None = None, seed: int = 0, progress: Progress | None = None, lazy: bool = False,
            **options: Any) -> Clip:
        """Give a clip new words: the picture follows another recording, which is its audio from then on.

        clip: a video file of any kind, or a Clip. mask: what of the picture is made anew, white in an image, or an
        ellipse (centre x, y, width, height, in fractions of the picture), such as the mouth; None: all but the first
        frame. The original is pasted back outside; edge: pixels over which the new picture fades into it, default a
        32nd of the shorter side. prompt: default the clip's own, where it carries one. A recording shorter than the
        clip is followed by silence, a longer one is cut.
        options, seed, progress, lazy, and what is raised: as for generate.
        """
        check_edge(edge)
        refuse(options, "A dub has its clip's length", "seconds")
        if edge is not None and mask is None:
            raise InputError("edge is of a mask, and there is none. Give one, or leave edge out.")
        source = open_source(clip)
        region = None if mask is None else read_mask(mask, *source.size)
        request = self._request_for(source, prompt, [seed], **options)
        making = Regeneration(request, source, read_audio(audio, None), region, edge, keep_first=mask is None)
        return next(self._make(making, progress, lazy))

    def retake(self, clip: str | Path | Clip, start: float, end: float, *, audio_only: bool = False,
               video_only: bool = False, prompt: Prompt | None = None, seed: int = 0,
               progress: Progress | None = None, lazy: bool = False, **options: Any) -> Clip:
        """Perform a moment again: video and audio (or one of them) from start to end, in seconds, are made anew.

        The rest of the clip stays as it is. As for dub otherwise.
        """
        if audio_only and video_only:
            raise InputError("A retake cannot be of the audio only and of the video only. Choose one, or neither.")
        refuse(options, "A retake has its clip's length and sound", "seconds", "audio")
        if audio_only:
            refuse(options, "A retake of the audio keeps the picture", "upscale")
        source = open_source(clip)
        times = retake_times(start, end, source.count)
        request = self._request_for(source, prompt, [seed], new_picture=not audio_only, **options)
        return next(self._make(Regeneration(request, source, times=times, video=not audio_only,
                                            new_audio=not video_only), progress, lazy))

    def extend(self, clip: str | Path | Clip, *, audio: str | Path | Waveform | None = None,
               seconds: float | None = None, prompt: Prompt | None = None, seed: int = 0,
               progress: Progress | None = None, lazy: bool = False, **options: Any) -> Clip:
        """A clip and its continuation, in the same voice, or driven by a recording that is heard from its end on.

        seconds: how much is added; default 4, or all of the audio. overlap (one of the options): how much of the clip's
        end is carried over. Of a Clip made here the latents are carried. As for dub otherwise.
        """
        refuse(options, "A continuation begins with its clip's end", "image", "keyframes", "loop", "denoise")
        source = open_source(clip)
        request = self._request_for(source, prompt, [seed], audio=audio, seconds=seconds, **options)
        if request.audio is None and request.audio_length < 2:  # a clip's first frame has a latent more
            raise InputError(f"Of a continuation less than a frame of {1 / FPS:g} s is asked for, so nothing would be "
                             "added. Choose more seconds.")
        return next(self._make(Extension(request, source, request.first.overlap), progress, lazy))

    def stream(self, audio_chunks: Iterable[Tensor], *, rate: int, prompt: str, image: Picture | None = None,
               seed: int = 0, overlap: float | None = None, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """A face for a voice while it is spoken: (frames uint8 [F, h, w, 3], their sound [2, n]) window by window.

        audio_chunks: [samples] or [channels, samples], floating or int16, of any length, at `rate` samples per second;
        read as they are needed. Each window is given as soon as its sound has come; the end of the chunks is the end of
        the stream, and closing the iterator stops it. The sound given is the one that came. overlap: seconds of a
        window that the next begins with (default 0.48). options: as for generate, but for super-resolution.
        """
        check_stream_rate(rate)
        return self.open_stream(prompt=prompt, image=image, seed=seed, overlap=overlap, **options).windows(
            audio_chunks, rate)

    def open_stream(self, *, prompt: str, image: Picture | None = None, seed: int = 0, overlap: float | None = None,
                    **options: Any) -> Live:
        """A stream whose models are loaded before any sound comes. Its windows(audio_chunks, rate) gives it, once.

        The arguments are those of stream(), which does both.
        """
        if options.get("upscale") is not None:
            raise InputError("A stream is made without super-resolution. Leave upscale out.")
        refuse(options, "A stream begins with one picture, and follows its sound", "audio", "seconds", "keyframes",
               "loop", "denoise", "anchor")
        request = self._request(prompt, [seed], image=image, **{**options, "anchor": False})
        carried = check_carried(request.first.window, CARRIED if overlap is None else shared_frames(overlap))
        self._watch(_silent, [])
        with torch.inference_mode():
            conditions = self._stage("text encoder", stages.encode_texts, request.segments, request.negative)
            stills = Making(request).stills(self.parts, self._stage)[request.first.size]
            # Here two parts are on the device at once, and so none of them is put aside.
            parts = replace(self.parts, keep=False, kept={})
            return Live(parts, request, conditions, stills, carried)

    def generate_audio(self, prompt: Prompt, *, seed: int = 0, progress: Progress | None = None,
                       **options: Any) -> Waveform:
        """A voice alone, quickly, as a draft: (fp32 [2, samples], 44100). options: as for generate.

        It may then drive a clip, as its audio.
        """
        with torch.inference_mode():
            request = self._request(prompt, [seed], **options, width=PIXELS_PER_TOKEN, height=PIXELS_PER_TOKEN)
            making, progress = Making(request), progress or _silent
            self._watch(progress, [stage for stage in planned(request, making.encoded, True, self.parts.models.is_demo)
                                   if stage[0] != "picture decoder"])
            conditions = self._stage("text encoder", stages.encode_texts, request.segments, request.negative)
            latents = making.latents(self.parts, self._stage)
            [(_, audio)] = self._sample(request.first, conditions, latents, [(seed, None)], progress)
            return self._stage("sound decoder", stages.decode_audio, audio), OUTPUT_RATE

    def _request(self, prompt: Prompt, seeds: Sequence[int], *, width: int | None = None, height: int | None = None,
                 **options: Any) -> Request:
        size = None
        if width is not None or height is not None:
            usual = (DEMO_SIDE, DEMO_SIDE) if self.parts.models.is_demo else (BASE.width, BASE.height)
            size = usual[0] if width is None else width, usual[1] if height is None else height
        return make_request(self.parts, prompt, size=size, seeds=seeds, **options)

    def _request_for(self, source: Source, prompt: Prompt | None, seeds: Sequence[int], *, width: int | None = None,
                     height: int | None = None, new_picture: bool = True, **options: Any) -> Request:
        """A request for a clip made of another: in its size, and with its prompt where there is no other.

        new_picture: whether what is seen will be made, or brought to another size, at all.
        """
        prompt = source.prompt if prompt is None else prompt
        if prompt is None:
            raise InputError(f"{source.name}: does not say what its prompt was. Give one (--prompt): what is seen and "
                             "heard in it.")
        self.parts.models.require("video_vae", "reading a clip")
        fitted = fit_area(*source.size, DEMO_SIDE**2 if self.parts.models.is_demo else BASE.area, f"{source.name}:")
        size = (fitted[0] if width is None else width, fitted[1] if height is None else height)
        options.setdefault("seconds", source.count / FPS)
        request = make_request(self.parts, prompt, size=size, seeds=seeds, **options)
        if new_picture and request.upscaling is None and math.prod(request.first.size) < 0.9 * math.prod(source.size):
            log.warning("%s: the new clip is %dx%d, smaller than the old one, %dx%d: all of the picture is brought to "
                        "that. upscale makes it larger.", source.name, *request.first.size, *source.size)
        return request

    def _make(self, making: Making, progress: Progress | None, lazy: bool,
              targets: Sequence[Path] = ()) -> Iterator[Clip]:
        """The clip of each seed, one after the other. targets: files for their latents."""
        started, request, progress = time.perf_counter(), making.request, progress or _silent
        if self.parts.crew is not None:
            for pass_ in request.passes:
                check_ranks(network_config(self.parts.open(pass_.recipe.role)), self.parts.crew.count)
        self._watch(progress, planned(request, making.encoded, making.generates_audio, self.parts.models.is_demo))
        with torch.inference_mode():
            conditions = self._stage("text encoder", stages.encode_texts, request.segments, request.negative)
            if request.upscaling is not None:
                check_text(conditions)
            latents = making.latents(self.parts, self._stage)
            results = self._sample(request.first, conditions, latents, [(seed, None) for seed in request.seeds],
                                   progress)
            if request.upscaling is not None:
                results = self._sample(request.upscaling, conditions, latents,
                                       list(zip(request.seeds, results, strict=True)), progress)
        generated = making.generates_audio
        saved = [SavedClip(video.cpu(), audio.cpu() if generated else None, None,
                           {**request.facts(seed), **making.facts})
                 for seed, (video, audio) in zip(request.seeds, results, strict=True)]
        for each, target in zip(saved, targets, strict=False):
            heard = None if generated else making.finish(self._frames(each.video), None)[1]
            replace(each, waveform=heard).save(target)
            log.info("%s: the latents are saved; magihuman decode makes a clip of them.", target)
        for each, (video, audio) in zip(saved, results, strict=True):
            clip = self._decode(each, making.finish, progress)
            if request.upscaling is None:
                whole = making.whole(video.cpu(), audio.cpu())
                if whole is not None and latent_of_frame(clip.video.count - 1) == whole[0].shape[2] - 1:
                    clip = replace(clip, latents=whole)
            if not lazy:
                clip = clip.decoded()
                log.info("Made %d frames of %dx%d, %.2f s, in %.1f s.", clip.video.count, clip.video.width,
                         clip.video.height, clip.seconds, time.perf_counter() - started)
            yield clip

    def _sample(self, pass_: Pass, conditions: stages.Conditions, latents: Mapping[Size, JointLatent],
                jobs: Sequence[tuple[int, tuple[Tensor, Tensor] | None]], progress: Progress
                ) -> list[tuple[Tensor, Tensor]]:
        arguments = pass_, conditions, latents[pass_.size], jobs
        crew = self.parts.crew
        with nullcontext() if crew is None else crew.calling(stages.sample, self.parts, *arguments, _silent):
            return self._stage(f"{pass_.name}, {pass_.steps} steps", stages.sample, *arguments, progress)

    def _decode(self, saved: SavedClip, finish: Callable[[Frames, Tensor | None], tuple[Frames, Tensor]],
                progress: Progress) -> Clip:
        """A clip whose frames are decoded when they are read. finish: what is done with frames and audio, decoded."""
        with torch.inference_mode():
            decoded = None
            if saved.audio is not None:
                decoded = self._stage("sound decoder", stages.decode_audio, saved.audio.to(self.parts.device))
            frames, waveform = finish(self._frames(saved.video), decoded)
        frames = frames.counted(lambda done, total: progress("picture decoder", done, total))
        return Clip(frames, waveform, metadata=dict(saved.facts))

    def _frames(self, video: Tensor) -> Frames:
        """Frames that are decoded of a latent when they are read."""
        height, width = (side * PIXELS_PER_LATENT for side in video.shape[3:])
        return Frames(decoded_frames(video.shape[2]), height, width, lambda: self._decoded(video))

    def _decoded(self, video: Tensor) -> Iterator[Tensor]:
        started = time.perf_counter()
        log.info("picture decoder ...")
        if self.watcher is not None:
            self.watcher.begin("picture decoder")
        pieces = stages.decode_video(self.parts, video)
        try:
            while True:
                with torch.inference_mode():  # around each piece: a generator would leave it on for its reader
                    piece = next(pieces, None)
                if piece is None:
                    break
                yield piece
        finally:
            pieces.close()
            self.parts.put_aside()
            release_memory(self.parts.device)
            log.info("picture decoder: %.1f s", time.perf_counter() - started)

    def _stage(self, name: str, stage: Callable[Concatenate[Parts, P], Result], *args: P.args,
               **kwargs: P.kwargs) -> Result:
        """Run a stage: its time in the log, and its memory given back."""
        started = time.perf_counter()
        log.info("%s ...", name)
        if self.watcher is not None:
            self.watcher.begin(name)
        try:
            result = stage(self.parts, *args, **kwargs)
        finally:
            self.parts.put_aside()
        release_memory(self.parts.device)
        log.info("%s: %.1f s", name, time.perf_counter() - started)
        return result

    def _watch(self, progress: Progress, planned: Sequence[tuple[str, float]]) -> None:
        """Tell a progress that wants to know them the stages to come; the one before hears of none from now on."""
        self.watcher = progress if isinstance(progress, Watcher) else None
        if self.watcher is not None:
            self.watcher.plan(planned)


def refuse(options: Mapping[str, Any], why: str, *names: str) -> None:
    """Raise InputError for options that one way of making a clip cannot follow. Those at their defaults pass."""
    for name in names:
        value = options.get(name)
        all_new = name == "denoise" and isinstance(value, int | float) and value == 1
        if not (value is None or value is False or all_new or (isinstance(value, Mapping) and not value)):
            raise InputError(f"{why}: {name} cannot be chosen. Leave it out.")


def check_text(conditions: stages.Conditions) -> None:
    """Raise InputError for a prompt that super-resolution networks cannot read."""
    if min(text.shape[1] for text in conditions.texts) < 2:
        raise InputError("The prompt is too short for super-resolution, which needs two words at least. Write a longer "
                         "one.")


def _silent(stage: str, done: int, total: int) -> None:
    pass
