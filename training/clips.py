"""Clips with picture, sound and prompt from one whole number.

Lengths are those of the model: 2 s are 51 audio latents, 13 video latents, 49 frames.
"""

from dataclasses import dataclass

import numpy as np

from magihuman_core.sizes import audio_length, decoded_frames, latent_frames
from training import palette, scenes, voice
from training.captions import BODIES, make_caption

CHOICES = {**palette.CHOICES, "language": tuple(voice.PROSODY), "pace": tuple(voice.PACES)}


@dataclass(frozen=True)
class Clip:
    """video uint8 [F, H, W, 3]; audio float32 [2, n] at 51.2 kHz; mouth_opening float32 [F].

    attributes: name -> value of CHOICES; syllables: [(name, start_s, end_s)]; video is None where only
    sound was asked for.
    """

    video: np.ndarray | None
    audio: np.ndarray
    caption: str
    attributes: dict
    syllables: list
    mouth_opening: np.ndarray
    seed: int


def frames_in(seconds):
    """Frames that the model makes for so many seconds."""
    return decoded_frames(latent_frames(audio_length(seconds)))


def make_clip(seed, height=128, width=None, seconds=2, *, attributes=None, words=None, with_video=True, hat=False,
              scene_seed=None, quiet=None):  # fmt: skip
    """Make one clip.

    seed: non-negative int, fixes everything; the same seed at another size is the same scene, drawn
    natively. height, width: in pixels; square where no width is given. attributes: values of CHOICES to ask for,
    words: syllable names to speak; both random when left out. hat: see scenes.Scene. scene_seed: of a clip whose
    person this is, in another take: all that is seen is alike but for what the mouth says. quiet: see
    voice.plan_syllables. Raises ValueError for unknown attributes or syllables.
    """
    asked = dict(attributes or {})
    for name, value in asked.items():
        if value not in CHOICES.get(name, ()):
            raise ValueError(f"attribute {name}={value!r} is unknown: see training.clips.CHOICES")
    if words is not None and not set(words) <= set(voice.SYLLABLES):
        raise ValueError(f"words {words!r}: expected syllables out of {' '.join(voice.SYLLABLES)}")
    # One stream of random numbers per part, so that a change in one leaves the others as they are.
    seeds = [seed if scene_seed is None else scene_seed, seed, seed]
    scene_rng, plan_rng, voice_rng = (np.random.default_rng([own, part]) for part, own in enumerate(seeds))
    frames = frames_in(seconds)
    duration = frames / voice.FRAME_RATE
    scene = scenes.make_scene(scene_rng, duration, asked, hat)
    chosen = dict(scene.attributes)
    for name in ("language", "pace"):
        drawn = str(plan_rng.choice(CHOICES[name]))
        chosen[name] = asked.get(name, drawn)
    phrasing = int(plan_rng.integers(len(BODIES)))
    syllables = voice.plan_syllables(plan_rng, duration, chosen["pace"], words, quiet)
    audio = voice.speak(
        voice_rng,
        syllables,
        audio_length(seconds) * voice.SAMPLES_PER_TOKEN,
        chosen["person"],
        chosen["language"],
    )
    return Clip(
        video=scenes.draw(scene, syllables, frames, height, width or height) if with_video else None,
        audio=audio,
        caption=make_caption(chosen, syllables, phrasing),
        attributes=chosen,
        syllables=syllables,
        mouth_opening=scenes.mouth_curves(syllables, frames)[0].astype(np.float32),
        seed=int(seed),
    )
