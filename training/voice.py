"""A small synthetic voice: syllables on a time line, mouth movement, and sound from source and formants.

The time line is the one truth for picture and sound: `speech_curves` gives mouth opening, mouth
shape and loudness at any times, the drawing reads it at 25 frames/s and the voice at a control rate.

Source-filter synthesis after Fant: every glottal pulse starts the impulse response of a cascade of
second-order resonators (formants). The responses are added up pulse by pulse, so the cost is that of a
few hundred short additions a clip. All sound stays below about 6 kHz and all transitions take some
40 ms or longer, because the audio VAE spends one latent on 40 ms.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SAMPLE_RATE = 51200
SAMPLES_PER_TOKEN = 2048  # one audio token, one video frame
FRAME_RATE = 25

ONSETS = ("m", "s")
VOWELS = ("a", "e", "i", "o", "u")
SYLLABLES = tuple(onset + vowel for onset in ONSETS for vowel in VOWELS)
SHAPES = (*VOWELS, "m", "s")  # columns of the mouth-shape weights

# Peak opening of the mouth per vowel; also the loudness of the vowel, so that sound follows the picture.
VOWEL_OPENING = {"a": 1.0, "e": 0.66, "i": 0.46, "o": 0.82, "u": 0.50}
ONSET_SECONDS = 0.09
MURMUR = 0.14  # loudness of m, with closed lips
HISS = 0.17  # loudness of s, and the small opening that goes with it
LEVEL = 0.17  # RMS of a fully open vowel
CONTROL_RATE = 800  # Hz, time grid of the slow curves

# Formant frequencies of an adult man in Hz (after Peterson & Barney 1952, pulled apart), bandwidths below.
FORMANTS = {
    "a": (780, 1220, 2500, 3500),
    "e": (500, 1880, 2550, 3500),
    "i": (270, 2400, 3050, 3600),
    "o": (450, 780, 2450, 3400),
    "u": (290, 620, 2250, 3300),
    "m": (230, 1050, 2050, 3200),
}
BANDWIDTHS = {"m": (70, 500, 500, 600)}
VOWEL_BANDWIDTHS = (80, 100, 140, 220)
RESPONSE_SAMPLES = 1536  # 30 ms: longer than the ring of the narrowest formant


PITCH_RANGE = 1.6  # semitones that a voice lies above or below its kind's
TRACTS = (0.97, 0.985, 1.0, 1.015, 1.03)  # factors on its tract; few, because responses are computed once for each


@dataclass(frozen=True)
class Speaker:
    """pitch: mean fundamental in Hz. tract: factor on all formants (a shorter tract, higher formants)."""

    pitch: float
    tract: float


SPEAKERS = {
    "man": Speaker(118.0, 1.0),
    "woman": Speaker(198.0, 1.14),
    "child": Speaker(288.0, 1.25),
}


def some_speaker(rng, person):
    """One of the many voices of a man, a woman or a child."""
    kind = SPEAKERS[person]
    pitch = kind.pitch * 2.0 ** (rng.uniform(-PITCH_RANGE, PITCH_RANGE) / 12.0)
    return Speaker(pitch, kind.tract * float(rng.choice(TRACTS)))


# Prosody by language, in semitones: slope inside a syllable, fall over the clip, accent of the first
# syllable, step between neighbours, lift of the last syllable. Labels with a tune, no phonology.
PROSODY = {
    "Mandarin": (-2.5, 1.0, 0.0, 1.5, -0.5),
    "Cantonese": (0.5, 0.5, 0.0, 2.0, -1.5),
    "English": (-1.0, 2.5, 1.5, 0.5, -1.0),
    "Japanese": (0.0, 1.5, -1.5, 0.0, -1.0),
    "Korean": (0.5, 1.0, -0.5, 0.5, 2.0),
    "German": (-1.5, 2.0, 2.0, 1.0, -1.5),
    "French": (0.5, 0.5, 0.0, 0.0, 2.5),
}

# Length of a syllable in seconds, longest rest between two, and syllables per second, by pace.
PACES = {
    "slowly": (0.36, 0.20, (1.5, 2.05)),
    "calmly": (0.31, 0.14, (1.6, 2.6)),
    "quickly": (0.26, 0.08, (2.3, 3.1)),
}

QUIET = (0.0, 0.0, 0.15, 0.3)  # shares of a clip's time that pauses take


def plan_syllables(rng, seconds, pace="calmly", names=None, quiet=None):
    """Lay random (or the given) syllables on a time line of `seconds`.

    Returns [(name, start_s, end_s)] with a rest before the first and between all. Half of all time lines also have
    pauses: at the beginning, at the end, between phrases; quiet fixes their share of the time. Given names that do not
    fit at this pace are spoken faster.
    """
    length, longest_rest, (slowest, fastest) = PACES[pace]
    room = seconds - 0.10
    quiet = float(rng.choice(QUIET)) if quiet is None else quiet
    if names is None:
        spoken = seconds * (1.0 - quiet)
        least, most = int(np.ceil(slowest * spoken)), int(fastest * spoken)
        count = int(rng.integers(least, max(least, most) + 1))
        names = [str(rng.choice(SYLLABLES)) for _ in range(count)]
    count = len(names)
    lengths = length * rng.uniform(0.93, 1.07, count)
    rests = 0.04 + rng.uniform(0.0, 1.0, count) * longest_rest
    rests[0] = rng.uniform(0.06, 0.14)
    fit = min(1.0, room / (lengths.sum() + rests.sum()))
    lengths, rests = lengths * fit, rests * fit
    left = room - rests.sum() - lengths.sum()
    if quiet:
        # What is left goes into a few pauses, one of which may be after the last syllable.
        shares = rng.dirichlet(np.full(count + 1, 0.3))
        rests = rests + left * shares[:-1]
    else:
        rests[0] += rng.uniform(0.0, 0.6) * left
    starts = np.cumsum(rests) + np.cumsum(lengths) - lengths
    return [
        (name, float(start), float(start + span))
        for name, start, span in zip(names, starts, lengths, strict=True)
    ]


def _rise(t, start, seconds):
    """0 before start, 1 after start + seconds, raised cosine between."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip((t - start) / seconds, 0.0, 1.0))


def speech_curves(syllables, t):
    """The slow curves of speech at times t [N] in seconds.

    Returns a dictionary: opening [N] in 0..1 (the truth of mouth and loudness), voiced [N] and noise [N]
    (loudness of the two sources), shape [N, 7] (weights of SHAPES, sum <= 1; the rest is the mouth at rest),
    timbre [N, 7] (the same for the sound, always normalized to 1 where anything sounds).
    """
    t = np.asarray(t, dtype=np.float64)
    opening, voiced, noise = np.zeros((3, t.size))
    shape = np.zeros((t.size, len(SHAPES)))
    timbre = np.zeros((t.size, len(SHAPES)))
    for name, start, end in syllables:
        onset, vowel = name[0], name[1]
        onset_end = start + min(ONSET_SECONDS, 0.35 * (end - start))
        vowel_on = _rise(t, onset_end - 0.02, 0.07)
        vowel_off = 1.0 - _rise(t, end - 0.09, 0.09)
        bump = VOWEL_OPENING[vowel] * vowel_on * vowel_off
        consonant = _rise(t, start - 0.01, 0.045) * (1.0 - vowel_on)
        opening += bump
        voiced += bump
        if onset == "m":
            voiced += MURMUR * consonant
        else:
            noise += HISS * consonant
            opening += HISS * consonant
        k, c = SHAPES.index(vowel), SHAPES.index(onset)
        # The lips take their shape a little before and leave it a little after the sound.
        shape[:, k] += _rise(t, onset_end - 0.05, 0.07) * (1.0 - _rise(t, end - 0.03, 0.08))
        shape[:, c] += _rise(t, start - 0.05, 0.05) * (1.0 - _rise(t, onset_end - 0.05, 0.07))
        timbre[:, k] += vowel_on * (t >= start - 0.02) * (t <= end + 0.02)
        timbre[:, c] += (1.0 - vowel_on) * (t >= start - 0.02) * (t <= end + 0.02)
    shape /= np.maximum(shape.sum(1, keepdims=True), 1.0)
    timbre /= np.maximum(timbre.sum(1, keepdims=True), 1e-9)
    return {"opening": opening, "voiced": voiced, "noise": noise, "shape": shape, "timbre": timbre}


@lru_cache(maxsize=128)
def _formant_response(sound, tract):
    """Impulse response [RESPONSE_SAMPLES] of one glottal pulse through the tract, unit energy, read-only."""
    size = 4 * RESPONSE_SAMPLES
    f = np.fft.rfftfreq(size, 1.0 / SAMPLE_RATE)
    # Glottal pulse and lip radiation together: a low-pass of first order that lets no constant through.
    spectrum = (1j * f / 100.0) / (1.0 + 1j * f / 100.0) / (1.0 + 1j * f / 500.0)
    bandwidths = BANDWIDTHS.get(sound, VOWEL_BANDWIDTHS)
    for centre, width in zip(FORMANTS[sound], bandwidths, strict=True):
        centre, width = centre * tract, width * tract
        spectrum = spectrum * centre**2 / (centre**2 - f**2 + 1j * f * width)
    spectrum = spectrum / (1.0 + 1j * f / 5000.0) ** 4  # causal roll-off: keep the band small
    response = np.fft.irfft(spectrum, size)[:RESPONSE_SAMPLES]
    fade = np.ones(RESPONSE_SAMPLES)
    fade[-512:] = 0.5 + 0.5 * np.cos(np.linspace(0.0, np.pi, 512))
    response = response * fade
    response = (response / np.sqrt((response**2).sum())).astype(np.float32)
    response.setflags(write=False)
    return response


def pitch_curve(rng, syllables, t, speaker, language):
    """Fundamental in Hz at times t [N]: pitch of this voice, tune of the language, small jitter."""
    slope, fall, first, step, last = PROSODY[language]
    end = syllables[-1][2] if syllables else 1.0
    semitones = fall * (0.5 - t / end)
    for k, (_, start, stop) in enumerate(syllables):
        accent = (first if k == 0 else 0.0) + (last if k == len(syllables) - 1 else 0.0)
        accent += step * (k % 2 - 0.5) + rng.normal(0.0, 0.4)
        inside = np.clip((t - start) / (stop - start), 0.0, 1.0)
        window = _rise(t, start - 0.05, 0.06) * (1.0 - _rise(t, stop - 0.01, 0.06))
        semitones = semitones + window * (accent + slope * (inside - 0.5))
    knots = rng.normal(0.0, 0.12, max(4, int(t[-1] * 30) + 2))
    semitones = semitones + np.interp(t, np.linspace(0.0, t[-1], knots.size), knots)
    semitones = semitones + 0.25 * np.sin(2.0 * np.pi * (5.2 * t + rng.uniform()))
    return speaker.pitch * 2.0 ** ((semitones + rng.uniform(-0.3, 0.3)) / 12.0)


def speak(rng, syllables, samples, person="woman", language="English"):
    """Synthesise speech: float32 [2, samples] at 51.2 kHz, both channels alike, peak below 1.

    person: key of SPEAKERS; language: key of PROSODY.
    """
    speaker = some_speaker(rng, person)
    control = np.arange(int(samples / SAMPLE_RATE * CONTROL_RATE) + 2) / CONTROL_RATE
    curves = speech_curves(syllables, control)
    f0 = pitch_curve(rng, syllables, control, speaker, language)

    cycles = np.concatenate([[0.0], np.cumsum(f0[:-1]) / CONTROL_RATE])
    pulses = np.interp(np.arange(1, int(cycles[-1])), cycles, control)
    loudness = np.interp(pulses, control, curves["voiced"])
    pulses, loudness = pulses[loudness > 1e-3], loudness[loudness > 1e-3]
    # A train of unit-energy responses at f0 has RMS sqrt(f0 / rate), but for harmonics that hit a formant.
    gain = LEVEL * loudness / np.sqrt(np.interp(pulses, control, f0) / SAMPLE_RATE)
    voices = (*VOWELS, "m")
    weights = np.stack(
        [np.interp(pulses, control, curves["timbre"][:, SHAPES.index(v)]) for v in voices], axis=1
    )
    # Where m melts into a vowel the s column is 0, so these weights sum to 1; after s they do not.
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-6)
    bank = np.stack([_formant_response(v, speaker.tract) for v in voices])
    responses = ((weights * gain[:, None]).astype(np.float32)) @ bank  # [pulses, RESPONSE_SAMPLES]

    waveform = np.zeros(samples + RESPONSE_SAMPLES + 1, dtype=np.float32)
    whole = (pulses * SAMPLE_RATE).astype(np.int64)
    part = (pulses * SAMPLE_RATE - whole).astype(np.float32)
    for start, fraction, response in zip(whole, part, responses, strict=True):
        waveform[start : start + RESPONSE_SAMPLES] += (1.0 - fraction) * response
        waveform[start + 1 : start + 1 + RESPONSE_SAMPLES] += fraction * response
    waveform = _levelled(waveform[:samples], curves["voiced"], control)
    waveform += _hiss(rng, curves["noise"], control, samples)
    waveform = np.clip(waveform, -1.0, 1.0)
    return np.stack([waveform, waveform])


def _levelled(waveform, loudness, control):
    """Bring the level of every 40 ms to the wanted loudness, as the picture shows it; same shape."""

    def power(x):
        total = np.concatenate([np.zeros(1), np.cumsum(np.square(x, dtype=np.float64))])
        edges = np.arange(0, x.size + hop, hop).clip(0, x.size)
        half = SAMPLES_PER_TOKEN // 2
        return (total[(edges + half).clip(max=x.size)] - total[(edges - half).clip(min=0)]), edges

    hop = 256
    wanted, edges = power(LEVEL * np.interp(np.arange(waveform.size) / SAMPLE_RATE, control, loudness))
    found, _ = power(waveform)
    gain = np.sqrt((wanted + 1e-2) / (found + 1e-2))
    return waveform * np.interp(np.arange(waveform.size), edges, gain).astype(np.float32)


def _hiss(rng, loudness, control, samples):
    """The noise of s: 3.6 to 5.8 kHz, float32 [samples], loudness [N] given on the control grid."""
    hiss = np.zeros(samples, dtype=np.float32)
    active = np.flatnonzero(np.diff(np.concatenate([[0], loudness > 1e-3, [0]])))
    for first, last in active.reshape(-1, 2):
        start = int(control[first] * SAMPLE_RATE)
        stop = min(samples, int(control[min(last, control.size - 1)] * SAMPLE_RATE))
        if stop <= start:
            continue
        spectrum = np.fft.rfft(rng.standard_normal(stop - start))
        f = np.fft.rfftfreq(stop - start, 1.0 / SAMPLE_RATE)
        spectrum *= np.exp(-(((f - 4700.0) / 900.0) ** 4))
        noise = np.fft.irfft(spectrum, stop - start)
        noise /= np.sqrt((noise**2).mean()) + 1e-9
        envelope = np.interp(np.arange(start, stop) / SAMPLE_RATE, control, loudness)
        hiss[start:stop] = LEVEL * envelope * noise
    return hiss
