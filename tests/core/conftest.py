"""What several tests work on: small random models, a photograph and a spoken sentence."""

import ctypes
import runpy
from array import array
from pathlib import Path

import pytest
import soundfile
import torch

from .golden import small_model

TESTS = Path(__file__).resolve().parents[1]
SENTENCE = "Good morning. This is a small test of a voice that drives a clip."


@pytest.fixture(scope="session")
def make_models():
    """make_models(folder, networks): see tests/make_random_models.py."""
    return runpy.run_path(str(TESTS / "make_random_models.py"))["make_models"]


@pytest.fixture(scope="session")
def random_models(make_models, tmp_path_factory) -> Path:
    """All parts, in the layout of the official downloads. Not to be written into."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def official() -> dict[str, torch.Tensor]:
    """A small network under the official names. Each test has its own, to change as it likes."""
    return small_model("network")


@pytest.fixture(scope="session")
def photograph() -> Path:
    """A real portrait, 512x600: Grace Hopper, which matplotlib ships as sample data."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture(scope="session")
def voice(tmp_path_factory) -> Path:
    """A spoken sentence, mono at 22.05 kHz, from the speech synthesiser eSpeak NG."""
    samples, rate = speak(SENTENCE)
    path = tmp_path_factory.mktemp("voice") / "voice.wav"
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def speak(text: str) -> tuple[array, int]:
    """16-bit samples and their rate. Called by ctypes: Python wrappers want a system package."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    samples = array("h")

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(wave, count, events):
        if wave and count > 0:
            samples.extend(wave[:count])
        return 0

    synchronous, utf8 = 2, 1  # AUDIO_OUTPUT_SYNCHRONOUS, espeakCHARS_UTF8
    rate = library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0)
    library.espeak_SetSynthCallback(collect)
    library.espeak_SetVoiceByName(b"en")
    data = text.encode() + b"\0"
    library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, utf8, None, None)
    library.espeak_Synchronize()
    library.espeak_Terminate()
    return samples, rate
