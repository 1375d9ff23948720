"""Elementwise work through torch.compile: the same numbers, few graphs, and clear words where there is no compiler."""

import logging
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from torch._dynamo.utils import counters

from magihuman_core import InputError, apply_lora, load_dit
from magihuman_core.nn.elementwise import EAGER
from magihuman_core.runtime import fuse as fuse_module
from magihuman_core.runtime.fuse import can_fuse, fuse_elementwise, why_not

from .golden import random_clip, recorded_network, relative
from .test_dit import CASES, Case, random_dit


@pytest.fixture(autouse=True)
def compiler():
    if reason := why_not(torch.device("cpu")):
        pytest.skip(f"torch.compile cannot be used here: {reason}")


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.timeout(300)
def test_few_graphs_serve_all_lengths_sizes_and_kinds_of_block(caplog):
    dit = random_dit(1, sandwich_layers=(0,), gelu_layers=(0,), post_norm_layers=(1,), heads=6, kv_heads=2)
    clips = [random_clip(dit.config, T, H, 4, 9, text) for T, H in ((3, 4), (4, 6), (5, 2)) for text in range(2, 26, 2)]
    with torch.inference_mode():
        plain = [dit(*clip) for clip in clips]
        with caplog.at_level(logging.INFO):
            assert fuse_elementwise(dit, True, "cpu")
        assert "first step" in caplog.text
        torch._dynamo.reset()
        before = graphs()
        dit(*clips[0])
        first = graphs() - before
        fused = [dit(*clip) for clip in clips]
    assert first <= 8 and graphs() - before == first
    for a, b in zip(plain, fused, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_vectors(name, dtype, tolerance):
    case = Case(name, recorded_network())
    dit = case.load(dtype)
    fuse_elementwise(dit, True, "cpu")
    recorded = "fp32" if dtype == torch.float32 else "bf16"
    with torch.inference_mode():
        video, audio = dit(*case.inputs())
    assert relative(video, case.tensors[f"{recorded}.x_video"]) < tolerance
    assert relative(audio.transpose(1, 2), case.tensors[f"{recorded}.x_audio"]) < tolerance


def test_beside_streamed_and_8_bit_weights_and_a_lora(official):
    key = next(key for key in official if key.endswith("mlp.down_proj.weight"))
    rows, columns = official[key].shape
    lora = {f"{key.removesuffix('.weight')}.lora_A.weight": torch.randn(4, columns),
            f"{key.removesuffix('.weight')}.lora_B.weight": torch.randn(rows, 4) * 0.1}
    outputs = []
    for fuse in (False, True):
        dit = load_dit(official, dtype=torch.int8, compute_dtype=torch.float32, resident_blocks=1, fuse=fuse)
        apply_lora(dit, lora)
        with torch.inference_mode():
            torch.manual_seed(2)
            outputs.append(dit(*random_clip(dit.config)))
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_without_a_word_nothing_is_fused_on_a_cpu():
    dit = random_dit(0)
    assert not fuse_elementwise(dit, None, "cpu")
    assert all(part.elementwise is EAGER for part in dit.modules() if hasattr(part, "elementwise"))


def test_no_triton_is_said_once_and_refused_where_fusing_is_wanted(monkeypatch, caplog):
    monkeypatch.setattr(fuse_module, "find_spec", lambda name: None)
    why_not.cache_clear()
    with caplog.at_level(logging.INFO):
        assert not fuse_elementwise(random_dit(0), None, "cuda")
    assert caplog.messages == ["Elementwise work is not fused: Triton is not installed."]
    with pytest.raises(InputError, match=r"fuse is True, .* cuda here: Triton is not installed"):
        fuse_elementwise(random_dit(0), True, "cuda")
    why_not.cache_clear()


def test_the_card_that_is_computed_on_is_the_one_that_is_tried(monkeypatch):
    """Of two cards the first is too old. There is none here: what is asked of them is looked at."""
    current = []

    @contextmanager
    def device(chosen):
        current.append(chosen)
        yield
        current.pop()

    def compiled(function):
        def run(x):
            if current[-1].index == 0:
                raise RuntimeError("Quadro P1000 is too old to be supported by the triton GPU compiler.\nA long text")
            assert x == current == [torch.device("cuda:1")]
        return run

    monkeypatch.setattr(fuse_module, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch, "ones", lambda size, device: [torch.device(device)])
    monkeypatch.setattr(torch, "compile", compiled)
    why_not.cache_clear()
    assert can_fuse(None, "cuda:1") and not can_fuse(None, "cuda:0") and can_fuse(True, torch.device("cuda:1"))
    with pytest.raises(InputError, match="for cuda:0 here: Quadro P1000 is too old"):
        can_fuse(True, "cuda:0")
    why_not.cache_clear()


def test_a_machine_without_a_compiler_is_told_so(tmp_path):
    script = ("from magihuman_core import load_dit, InputError\n"
              "from magihuman_core.loading.folder import find_models\n"
              "try: load_dit(find_models('demo')['distilled'], fuse=True)\n"
              "except InputError as error: print('REFUSED', error)")
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120,
                          check=False)
    assert "REFUSED fuse is True, but torch.compile cannot build kernels for cpu" in done.stdout, done.stderr
