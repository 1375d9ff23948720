"""What the cases begin with: sound models and media, made once, and commands on them."""

import contextlib
import functools
import os
import random
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from magihuman_core.cli import main

from .judge import SHARED

if TYPE_CHECKING:
    from .graphs import KnownServer

TESTS = Path(__file__).resolve().parents[1]
SMALL = ["--width", "64", "--height", "32", "--seconds", "0.2", "--steps", "1", "--sr-steps", "1", "--device", "cpu"]


class Workshop:
    """A folder with random models, a picture, recordings, a video, latents and a LoRA, all sound."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch.set_num_threads(1)
        self.models = runpy.run_path(str(TESTS / "make_random_models.py"))["make_models"](
            folder / SHARED[0], ("distill", "540p_sr"))
        self.media = folder / SHARED[1]
        self.media.mkdir()
        self._write_media()
        self.count = 0
        self.closing = contextlib.ExitStack()

    @functools.cached_property
    def comfyui(self) -> "KnownServer":
        """A ComfyUI server, started when it is first asked for, until `closing`."""
        from .graphs import KnownServer

        known = KnownServer(self.folder)
        self.closing.callback(lambda: known.server.stop())
        return known

    def _write_media(self) -> None:
        from magihuman_core.media.audio_file import write_wav

        noise = np.random.default_rng(0)
        picture = Image.fromarray(noise.integers(0, 255, (40, 72, 3), dtype=np.uint8))
        for name in ("a.png", "a.jpg", "a.webp", "a.tiff", "a.gif", "a.bmp"):
            picture.save(self.media / name)
        wave = 0.3 * torch.sin(torch.arange(16000) / 9).repeat(2, 1)
        write_wav(self.media / "a.wav", wave, 16000)
        self._encode("a.mp3", "libmp3lame", wave)
        self._encode("a.flac", "flac", wave)
        self._encode("a.m4a", "aac", wave)
        code = main(["generate", "--models", str(self.models), "--prompt", "hello", *SMALL,
                     "--out", str(self.media / "a.mp4"), "--save-latents", str(self.media / "latents.safetensors")])
        if code:
            raise RuntimeError("the sound models do not make a clip")
        self.lora = self.media / "lora.safetensors"
        layer = "block.layers.3.attention.linear_proj"
        save_file({f"{layer}.lora_A.weight": torch.randn(4, 64), f"{layer}.lora_B.weight": torch.randn(64, 4)},
                  self.lora)
        self._write_gguf()

    def _encode(self, name: str, codec: str, wave: torch.Tensor) -> None:
        import av

        with av.open(str(self.media / name), "w") as container:
            stream = container.add_stream(codec, rate=16000)
            samples = (wave.numpy() * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T.reshape(1, -1)), "s16", "stereo")
            frame.sample_rate = 16000
            resampler = av.AudioResampler(stream.format, "stereo", 16000, stream.codec_context.frame_size or 1024)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))

    def _write_gguf(self) -> None:
        import gguf
        from safetensors.torch import load_file

        self.gguf = self.media / "network.gguf"
        writer = gguf.GGUFWriter(self.gguf, "magihuman")
        for shard in sorted((self.models / "distill").glob("*.safetensors")):
            for key, tensor in load_file(shard).items():
                writer.add_tensor(key, tensor.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def case_folder(self) -> Path:
        """A new one."""
        self.count += 1
        folder = self.folder / f"case{self.count}"
        folder.mkdir()
        return folder

    def copy_models(self, folder: Path) -> Path:
        """The models, as links: what is to be changed is first written anew."""
        return Path(shutil.copytree(self.models, folder / "models", copy_function=os.link))

    def generate(self, out: Path, *options: object, models: Path | None = None) -> Callable[[], int]:
        """A small clip; of an option given twice the last wins."""
        prompt = [] if {"--prompt-file", "--script"} & set(map(str, options)) else ["--prompt", "hello there"]
        return command("generate", "--models", models or self.models, *prompt, *SMALL, "--out", out, *options)


def command(*arguments: object) -> Callable[[], int]:
    """The command line with these arguments."""
    argv = [str(argument) for argument in arguments]
    return lambda: main(argv)


def replace(path: Path, content: bytes) -> Path:
    """Another file of this name, so that links of it stay as they are."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def damaged(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Bytes changed in one of the ways that disks, downloads and people have."""
    data, size = bytearray(content), len(content)
    place, length = chance.randrange(size), min(size, 2 ** chance.randrange(12))
    way = chance.choice(["bits", "cut", "zeros", "noise", "removed", "doubled", "longer", "start", "empty"])
    if way == "bits":
        for _ in range(chance.randrange(1, 9)):
            data[chance.randrange(size)] ^= 1 << chance.randrange(8)
    elif way == "cut":
        del data[place:]
    elif way == "zeros":
        data[place:] = bytes(size - place)
    elif way == "noise":
        data[place:place + length] = chance.randbytes(length)
    elif way == "removed":
        del data[place:place + length]
    elif way == "doubled":
        data[place:place] = data[place:place + length]
    elif way == "longer":
        data += chance.randbytes(length)
    elif way == "start":  # headers and their lengths
        for _ in range(chance.randrange(1, 5)):
            data[chance.randrange(min(size, 64))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    else:
        data.clear()
    return bytes(data), way
