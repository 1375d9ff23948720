"""One network on several processes gives what it gives on one, whatever the sizes, and sends as much as it should."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from magihuman_core import InputError, sequence_parallel
from magihuman_core.runtime import parallel
from magihuman_core.runtime.parallel import bytes_sent, share_heads, share_of

from .golden import random_clip, recorded_network, relative
from .ranks import run_ranks
from .test_dit import CASES, Case, random_dit


def vectors_of(dtype):
    """The recorded numbers' errors, by a network on all ranks: of video and audio of each case."""
    weights, found = recorded_network(), {}
    for name in CASES:
        case = Case(name, weights)
        dit = sequence_parallel(case.load(getattr(torch, dtype)))
        prefix = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
        with torch.inference_mode():
            video, audio = dit(*case.inputs())
        found[name] = [relative(video, case.tensors[f"{prefix}.x_video"]),
                       relative(audio.transpose(1, 2), case.tensors[f"{prefix}.x_audio"])]
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_recorded_vectors(ranks):
    for found in run_ranks(ranks, vectors_of, "float32"):
        assert set(found) == set(CASES)
        assert max(max(errors) for errors in found.values()) < 1e-5
    for found in run_ranks(ranks, vectors_of, "bfloat16"):
        assert max(max(errors) for errors in found.values()) < 2e-2
