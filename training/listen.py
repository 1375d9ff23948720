"""Reading back what was said: syllables and voice from the sound alone.

The reader knows the ten syllables and nothing of a clip: vowels are found as peaks of loudness below
3.4 kHz, named by the nearest of a few spectra that the synthesiser itself makes for each vowel, voice and
pitch, and the onset before each is a hiss or a murmur.
"""

from functools import lru_cache

import numpy as np
from scipy.signal import find_peaks

from training import voice

HOP = 512  # 10 ms
WINDOW = 2048
BANDS = 30


def _mono(audio):
    audio = np.asarray(audio, dtype=np.float32)
    return audio.mean(axis=0) if audio.ndim == 2 else audio


@lru_cache(maxsize=1)
def _band_matrix():
    """Triangular bands on the mel scale, 100 Hz to 6 kHz: [WINDOW // 2 + 1, BANDS]."""
    f = np.fft.rfftfreq(WINDOW, 1.0 / voice.SAMPLE_RATE)
    mel = 2595.0 * np.log10(1.0 + f / 700.0)
    low, high = 2595.0 * np.log10(1.0 + np.array([100.0, 6000.0]) / 700.0)
    edges = np.linspace(low, high, BANDS + 2)
    rise = (mel[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - mel[:, None]) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rise, fall), 0.0, None)


def spectra(audio):
    """Power spectra every 10 ms, 40 ms windows centred on the moment: [N, WINDOW // 2 + 1]."""
    waveform = np.pad(_mono(audio), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(waveform, WINDOW)[::HOP]
    window = np.hanning(WINDOW).astype(np.float32)
    return np.abs(np.fft.rfft(frames * window, axis=1)) ** 2 / np.square(window).sum() / WINDOW


def _profile(power):
    """Shape of a spectrum: log of its mel bands, 45 dB deep, without its level."""
    bands = power @ _band_matrix()
    level = 10.0 * np.log10(bands / bands.max(axis=-1, keepdims=True) + 10**-4.5)
    return level - level.mean(axis=-1, keepdims=True)


@lru_cache(maxsize=1)
def _vowel_templates():
    """Profiles of every vowel by every voice at several pitches: ([K, BANDS], names)."""
    profiles, names = [], []
    for person in voice.SPEAKERS:
        for seed, language in enumerate(voice.PROSODY):
            for vowel in voice.VOWELS:
                waveform = voice.speak(
                    np.random.default_rng(seed), [("m" + vowel, 0.05, 0.45)], 12 * 2048, person, language
                )
                profiles.append(_profile(spectra(waveform)[18:34].mean(axis=0)))
                names.append(vowel)
    return np.stack(profiles), names


def read_syllables(audio):
    """Read the syllables of a waveform [2, n] or [n] at 51.2 kHz. Returns a list of names, maybe empty."""
    return [name for name, _ in read_timed_syllables(audio)]


def read_timed_syllables(audio):
    """The same with the moment of each vowel's peak: [(name, seconds)]."""
    power = spectra(audio)
    f = np.fft.rfftfreq(WINDOW, 1.0 / voice.SAMPLE_RATE)
    voiced = np.sqrt(2.0 * power[:, (f > 80) & (f < 3400)].sum(axis=1))
    smooth = np.convolve(voiced, np.ones(3) / 3.0, mode="same")
    loudest = smooth.max()
    if loudest < 1e-3:
        return []
    peaks, _ = find_peaks(smooth, height=0.25 * loudest, prominence=0.15 * loudest, distance=12)
    templates, names = _vowel_templates()
    hiss_band, low_band = (f > 3700) & (f < 5700), (f > 120) & (f < 900)
    found = []
    for k, peak in enumerate(peaks):
        core = smooth > 0.6 * smooth[peak]
        first, last = peak, peak
        left_wall = peaks[k - 1] if k else 0
        right_wall = peaks[k + 1] if k + 1 < len(peaks) else len(smooth) - 1
        while first > left_wall and core[first - 1]:
            first -= 1
        while last < right_wall and core[last + 1]:
            last += 1
        profile = _profile(power[first : last + 1].mean(axis=0))
        vowel = names[int(np.argmin(np.square(templates - profile).sum(axis=1)))]
        onset = power[max(left_wall, first - 11) : max(first - 1, left_wall + 1)]
        hiss, murmur = onset[:, hiss_band].sum(axis=1).max(), onset[:, low_band].sum(axis=1)
        consonant = "s" if hiss > 0.3 * np.median(murmur) else "m"
        found.append((consonant + vowel, peak * HOP / voice.SAMPLE_RATE))
    return found


def edit_distance(read, asked):
    """Insertions, deletions and replacements between two sequences (Levenshtein)."""
    row = list(range(len(asked) + 1))
    for i, a in enumerate(read, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(asked, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def syllable_error_rate(read, asked):
    """Edit distance by asked length. Takes one pair of lists, or two lists of lists (then over all clips)."""
    if asked and isinstance(asked[0], str):
        read, asked = [read], [asked]
    errors = sum(edit_distance(r, a) for r, a in zip(read, asked, strict=True))
    return errors / max(1, sum(len(a) for a in asked))


def read_pitch(audio):
    """Median fundamental frequency in Hz of the voiced parts, 0.0 where there is no voice."""
    power = spectra(audio)
    level = power.sum(axis=1)
    if level.max() < 1e-6:
        return 0.0
    loud = power[level > 0.3 * level.max()]
    # The autocorrelation is the transform of the power spectrum; compressed, so that formants do not win.
    correlation = np.fft.irfft(np.sqrt(loud), axis=1)[:, : WINDOW // 2]
    lags = np.arange(voice.SAMPLE_RATE // 420, voice.SAMPLE_RATE // 80)
    best = lags[np.argmax(correlation[:, lags], axis=1)]
    return float(voice.SAMPLE_RATE / np.median(best))


def read_person(audio):
    """Whose voice it is: the speaker whose mean pitch is nearest (in octaves)."""
    pitch = max(read_pitch(audio), 1.0)
    return min(voice.SPEAKERS, key=lambda p: abs(np.log(pitch / voice.SPEAKERS[p].pitch)))
