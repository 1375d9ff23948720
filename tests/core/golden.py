"""What several tests work with: small models as tests/data has them, the real ones' shapes, inputs and measures."""

import base64
import json
import lzma
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

import magihuman_core

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
SMALL_MODELS = {
    "network": "pipeline/weights_base",
    "text_encoder": "t5gemma/tiny",
    "video_vae": "wan22_vae/tiny",
    "audio_vae": "sa_audio/oobleck_tiny",
    "turbo_vae": "turbo_vaed/tiny_weights",
}
REAL_MODELS = {
    "network": "real_config/dit_keys.json",
    "text_encoder": "real_config/t5gemma_encoder_keys.json",
    "video_vae": "real_config/wan22_vae_keys.json",
    "audio_vae": "real_config/sa_audio_keys.json",
    "turbo_vae": "turbo_vaed/real_keys.json",
}
LOADERS = {
    "network": magihuman_core.load_dit,
    "text_encoder": magihuman_core.load_text_encoder,
    "video_vae": magihuman_core.load_video_vae,
    "audio_vae": magihuman_core.load_audio_vae,
    "turbo_vae": magihuman_core.load_turbo_vae,
}
TEXT_CONFIG = json.loads((DATA / "t5gemma" / "tiny.json").read_text())["config"]  # what shapes do not tell


def small_model(kind: str) -> dict[str, Tensor]:
    """A model's weights, without the inputs, outputs and statistics that some were recorded with."""
    tensors = load_file(DATA / f"{SMALL_MODELS[kind]}.safetensors")
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    return weights or {key: value for key, value in tensors.items() if not key.startswith("__")}


def load_small(kind: str, weights: dict[str, Tensor] | None = None, **options) -> nn.Module:
    if kind == "text_encoder":
        options = {"config": TEXT_CONFIG} | options
    return LOADERS[kind](small_model(kind) if weights is None else weights, **options)


def recorded_network() -> dict[str, Tensor]:
    """The network of six layers that most recorded numbers are of."""
    return load(lzma.decompress((DATA / "dit" / "weights_main.safetensors.xz").read_bytes()))


def real_model(kind: str) -> dict[str, Tensor]:
    """The released model's names, shapes and dtypes, without storage."""
    keys = json.loads((DATA / REAL_MODELS[kind]).read_text())["keys"]
    return {key: torch.empty(spec["shape"], dtype=getattr(torch, spec["dtype"][6:]), device="meta")
            for key, spec in keys.items()}


def shapes_of(tensors) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def random_clip(config, T=3, H=4, W=4, audio=9, text=7, batch=1, seed=0) -> list[Tensor]:
    """Video, audio and text for a network."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, config.video_channels, T, H, W), (batch, config.audio_channels, audio),
              (batch, text, config.text_channels))
    return [torch.randn(shape, generator=generator) for shape in shapes]


@torch.inference_mode()
def outputs(dit: nn.Module, clip: list[Tensor] | None = None) -> Tensor:
    """What a network makes of a clip, as one vector."""
    return torch.cat([part.flatten() for part in dit(*(clip or random_clip(dit.config)))])


def relative(found: Tensor, expected: Tensor) -> float:
    """The relative error."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def safetensors_bytes(header: object, data: bytes) -> bytes:
    """A file, whatever stands in its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_index(folder: Path, weight_map: object, name: str = "model") -> Path:
    path = folder / f"{name}.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"role": "base"}, "weight_map": weight_map}))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def counting_operations(*kinds: str) -> tuple[SimpleNamespace, list[nn.Module]]:
    """torch's layers of these kinds, and a list to which each one made of them is added."""
    made: list[nn.Module] = []

    def counted(kind: str) -> type[nn.Module]:
        def init(self, *args, **options):
            made.append(self)
            base.__init__(self, *args, **options)

        base = getattr(nn, kind)
        return type(kind, (base,), {"__init__": init})

    return SimpleNamespace(**{kind: counted(kind) for kind in kinds}), made


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """As on a full disk files cannot grow beyond limit bytes: writing fails part way."""
    import pytest

    resource = pytest.importorskip("resource")  # not on Windows
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def in_fresh_process(function, *arguments, **environment: str):
    """What a function of a test module gives, as JSON has it, in a process whose memory is its own alone."""
    program = ("import base64, json, pickle, sys; function, arguments = pickle.loads(base64.b64decode(sys.argv[1])); "
               "print(json.dumps(function(*arguments)))")
    order = base64.b64encode(pickle.dumps((function, arguments))).decode()
    command = [sys.executable, "-c", program, order]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def memory_of_process(kind: str) -> int:
    """VmRSS, RssAnon or VmHWM of this process in bytes.

    Not getrusage's ru_maxrss: across exec that keeps the peak of the process it was started from.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind + ":"))
