"""One clip made by several processes: the clip of one process, and one sentence where a process fails."""

import ctypes
import os
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from magihuman_core import CheckpointError, InputError
from magihuman_core.cli import main, program
from magihuman_core.loading.folder import DEMO, ModelFolder
from magihuman_core.media import mp4
from magihuman_core.pipeline import clip, crew, stages
from magihuman_core.pipeline.parts import Parts

from .golden import ROOT, names, relative
from .ranks import run_program

PROMPT = "A woman in a dark jacket looks calmly into the camera."
if sys.platform != "linux":
    pytest.skip("the processes of these tests are forks", allow_module_level=True)


def arguments(models, out, *more):
    return ["generate", "--models", str(models), "--prompt", PROMPT, "--device", "cpu", "--width", "64", "--height",
            "64", "--seconds", "1.6", "--steps", "2", "--out", str(out), "--save-latents",
            str(out.with_suffix(".safetensors")), *more]


def keep_frames(rank=0):
    """Let what goes into an mp4 also be kept beside it: x264 does not always make the same of the same frames."""
    real = clip.write_mp4

    def kept(path, frames, *arguments, **options):
        frames = torch.stack(list(frames))
        torch.save(frames, Path(path).with_suffix(".frames"))
        real(path, frames, *arguments, **options)

    clip.write_mp4 = kept


@pytest.fixture(autouse=True)
def frames_are_kept(monkeypatch):
    monkeypatch.setattr(clip, "write_mp4", clip.write_mp4)  # to be put back
    keep_frames()


def frames_of(path):
    return torch.load(path.with_suffix(".frames"), weights_only=True)


def error_of(one, two):
    """The relative error of a clip's latents against those of another."""
    first, second = (load_file(path.with_suffix(".safetensors")) for path in (one, two))
    return max(relative(second[stream], first[stream]) for stream in first)


def decoded_alone(path, *options):
    """The frames that one process decodes of a clip's latents."""
    out = path.with_name("alone.mp4")
    assert main(["decode", str(path.with_suffix(".safetensors")), "--device", "cpu", "--out", str(out), *options]) == 0
    return frames_of(out)


@pytest.mark.parametrize("options", [
    (), ("--mode", "base", "--upscale", "96x96", "--sr-steps", "1"), ("--window", "0.9", "--overlap", "0.3"),
], ids=["in one piece", "guided and enlarged", "three windows"])
def test_the_clip_of_one_process(random_models, tmp_path, options):
    one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
    assert main(arguments(random_models, one, *options)) == 0
    ended = run_program(2, *arguments(random_models, two, *options))
    assert [code for code, _ in ended] == [0, 0], ended
    assert error_of(one, two) < 1e-5
    assert torch.equal(frames_of(two), decoded_alone(two, "--models", str(random_models)))
    assert "enlarging" in ended[0][1] or "--upscale" not in options
    assert ended[1][1] == ""  # progress is the leader's to tell


def test_windows_are_equal_bit_for_bit(random_models, tmp_path):
    options = ("--window", "0.64", "--overlap", "0.32", "--seconds", "1.1")  # latent frames 0 to 4 and 3 to 7
    one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
    assert main(arguments(random_models, one, *options)) == 0
    ended = run_program(2, *arguments(random_models, two, *options))
    assert [code for code, _ in ended] == [0, 0], ended
    assert "picture and sound 4/4" in ended[0][1]  # two windows, one for each process, in two steps
    assert error_of(one, two) == 0 and torch.equal(frames_of(one), frames_of(two))


def test_tiles_of_the_slower_decoder(random_models, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    for part in random_models.iterdir():
        if part.name != "turbo_vae":
            (models / part.name).symlink_to(part)
    out = tmp_path / "clip.mp4"
    ended = run_program(2, *arguments(models, out, "--width", "256", "--tile", "10"))
    assert [code for code, _ in ended] == [0, 0], ended
    alone = decoded_alone(out, "--models", str(models), "--tile", "10")
    assert torch.equal(frames_of(out), alone)
    assert not torch.equal(alone, decoded_alone(out, "--models", str(models)))  # tiles leave traces


def fails(rank):
    """A helper cannot read its network."""
    if rank == 1:
        def unreadable(*_, **__):
            raise CheckpointError("distill.safetensors: is damaged.")

        stages.load_dit = unreadable


def is_killed(rank, victim=1):
    """One process is gone in the middle of its first step."""
    if rank == victim:
        real = stages.WindowedDenoiser.__call__

        def killed(self, x, sigma, **options):
            if float(sigma) < 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, x, sigma, **options)

        stages.WindowedDenoiser.__call__ = killed


def leader_is_killed(rank):
    is_killed(rank, 0)


def is_killed_decoding(rank):
    if rank == 1:
        stages._bytes_of = lambda window: os.kill(os.getpid(), signal.SIGKILL)


def leader_is_stuck(rank):
    """The leader waits where no signal reaches it, as for a GPU, for a helper that is gone."""
    crew.GRACE = 0.5
    if rank == 0:
        library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)

        def stuck(*_, **__):
            library.pthread_mutex_lock(mutex)
            library.pthread_mutex_lock(mutex)

        stages.WindowedDenoiser.__call__ = stuck
    is_killed(rank)


def disk_is_full(rank):
    if rank == 0:
        def full(*_, **__):
            raise OSError(28, "No space left on device", "clip.mp4")

        mp4.whole_file = full


@pytest.mark.parametrize(("breaks", "said"), [
    (fails, "magihuman: process 1 of 2: distill.safetensors: is damaged."),
    (is_killed, "So the clip cannot be made. Was it stopped, by somebody or for want of memory?"),
    (leader_is_killed, "So the clip cannot be made. Was it stopped, by somebody or for want of memory?"),
    (is_killed_decoding, "So the clip cannot be made. Was it stopped, by somebody or for want of memory?"),
    (leader_is_stuck, "So the clip cannot be made. Was it stopped, by somebody or for want of memory?"),
    (disk_is_full, "clip.mp4: cannot be written (No space left on device); nothing is left there."),
])
def test_a_process_that_fails_ends_all_with_one_sentence(random_models, tmp_path, breaks, said):
    ended = run_program(2, *arguments(random_models, tmp_path / "clip.mp4"), breaks=breaks, seconds=60)
    assert any(code for code, _ in ended) and None not in [code for code, _ in ended], ended
    sentences = [line.partition("magihuman: ")[1] + line.partition("magihuman: ")[2]
                 for line in chain.from_iterable(text.replace("\r", "\n").splitlines() for _, text in ended)
                 if "magihuman: " in line]
    assert len(sentences) == 1 and said in sentences[0], ended
    assert [name for name in names(tmp_path) if "mp4" in name] == []


def test_what_is_refused_before_anything_is_loaded(random_models, tmp_path):
    for count, options, said in (
            (3, (), "3 processes cannot share the 2 attention heads"),
            (2, ("--device", "cuda"), "GPUs that PyTorch can use, fewer than the 2 processes"),
            (2, ("--device", "cuda:1"), "each takes its own GPU"), (2, ("--steps", "x"), "invalid int value")):
        if "cuda" in options and torch.cuda.device_count() > 1:
            continue
        ended = run_program(count, *arguments(random_models, tmp_path / "clip.mp4", *options), seconds=60)
        assert [code for code, _ in ended] == [2] + [0] * (count - 1), ended
        assert said in ended[0][1] and not any(text for _, text in ended[1:]), ended
        assert "reading the prompt" not in ended[0][1]
    assert names(tmp_path) == []


def crew_of_two(rank):
    """In place of the command: shared work of which the rest is left undone, then memory that runs out, then all."""
    def check(argv, ours):
        found = []
        for case in ("stopped", "no memory", "all"):
            with ours.calling(share, PARTS, case), ours.collecting():
                try:
                    for number, result in enumerate(ours.each(work_of(case), list(range(7)))):
                        found += [(case, int(value)) for value in result]
                        if case == "stopped" and number == 1:
                            break
                except MemoryError as error:
                    found.append((case, str(error)))
        expected = [("stopped", 0), ("stopped", 1), ("no memory", 0), ("no memory", "out of memory, of a helper"),
                    *(("all", n) for n in range(7))]
        assert found == expected
        return 0

    program._main = check


PARTS = Parts(ModelFolder(DEMO, {}, {}), torch.device("cpu"))


def work_of(case):
    def work(number):
        if case == "no memory" and number == 1:
            raise RuntimeError("out of memory, of a helper")
        return [torch.tensor(number)]

    return work


def share(parts, case):
    with parts.crew.collecting():
        for _ in parts.crew.each(work_of(case), list(range(7))):
            pass


def test_shared_work_may_be_left_undone():
    ended = run_program(2, breaks=crew_of_two, seconds=60)
    assert [code for code, _ in ended] == [0, 0], ended


def test_torchrun(random_models, tmp_path):
    """As people start it: two processes make a clip, and `--nproc-per-node 1` is as without torchrun."""
    for count in (1, 2):
        out = tmp_path / f"{count}.mp4"
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--rdzv-backend=c10d",
             "--rdzv-endpoint=localhost:0", "-m", "magihuman_core", *arguments(random_models, out)], cwd=ROOT,
            capture_output=True, text=True, check=False, timeout=150)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("frames with sound") == 1
    assert error_of(tmp_path / "1.mp4", tmp_path / "2.mp4") < 1e-5


def test_a_device_of_its_own():
    fourth = crew.Crew(3, 4, 4, 3, None)
    assert fourth.device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="each takes its own GPU"):
        fourth.device("mps")
