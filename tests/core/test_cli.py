"""The command line as a user meets it: a clip from a photograph and a voice, and every kind of bad input."""

import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image
from safetensors.torch import load_file, save_file

from magihuman_core.cli import main
from magihuman_core.cli.console import Exit
from magihuman_core.cli.program import EXAMPLES, build_parser
from magihuman_core.loading.downloads import EIGHT_BITS, download
from magihuman_core.media.audio_file import load_audio
from magihuman_core.media.waveform import resample

from .golden import ROOT, full_disk, names

PROMPT = "A woman in a dark jacket looks calmly into the camera and says good morning."
SMALL = ["--width", "64", "--height", "32", "--seconds", "0.4", "--steps", "1", "--device", "cpu"]


@pytest.fixture
def generate(random_models, capsys):
    """generate(out, *arguments): exit code, standard output, error output. Of an option given twice the last wins."""
    def run(out: Path, *arguments: str, models: Path = random_models) -> tuple[int, str, str]:
        prompt = [] if "--prompt-file" in arguments else ["--prompt", PROMPT]
        code = main(["generate", "--models", str(models), "--out", str(out), *prompt, *SMALL, *arguments])
        return code, *capsys.readouterr()

    return run


def size_of(path: Path) -> tuple[int, int]:
    with av.open(str(path)) as film:
        return film.streams.video[0].width, film.streams.video[0].height


def test_a_clip_from_a_photograph_and_a_voice(generate, photograph, voice, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT, encoding="utf-8")
    out = tmp_path / "clips" / "clip.mp4"
    code, answer, said = generate(out, "--prompt-file", str(tmp_path / "prompt.txt"), "--image", str(photograph),
                                  "--audio", str(voice), "--seconds", "4", "--width", "160", "--height", "96", "-v")
    assert code == 0, said
    assert "random weights" in said and "reference picture: " in said and "driving sound: " in said
    assert answer.startswith(f"{out}: 4.00 s") and answer.endswith("frames with sound\n")
    assert names(out.parent) == ["clip.mp4"]

    with av.open(str(out)) as film:
        assert sorted(stream.type for stream in film.streams) == ["audio", "video"]
        video, sound = film.streams.video[0], film.streams.audio[0]
        count = sum(1 for _ in film.decode(video))
        assert video.frames == count == 100  # 3.5 s of sound, and silence
        assert (video.width, video.height, video.average_rate) == (160, 96, 25)
        assert video.duration * video.time_base == sound.duration * sound.time_base == Fraction(count, 25)
    heard, expected = (resample(*load_audio(path), 44100)[0, : count * 1764].numpy() for path in (out, voice))
    assert np.corrcoef(heard[: len(expected)], expected)[0, 1] > 0.98
    assert np.abs(heard[len(expected) + 2000 :]).max() < 0.01


def test_super_resolution_and_base_mode(generate, photograph, tmp_path):
    code, _, said = generate(tmp_path / "a.mp4", "--image", str(photograph), "--mode", "base", "--upscale", "96x64",
                             "--sr-steps", "1", "-v")
    assert code == 0, said
    assert "sr_540p network, 1 steps" in said
    assert size_of(tmp_path / "a.mp4") == (96, 64)


def test_sizes_are_snapped_and_said(generate, tmp_path):
    code, _, said = generate(tmp_path / "a.mp4", "--width", "100", "--height", "50")
    assert code == 0, said
    assert "warning: The size 100x50 is not in multiples of 32; 96x32 is made." in said
    assert size_of(tmp_path / "a.mp4") == (96, 32)


@pytest.mark.parametrize("upscale", [True, False])
def test_the_built_in_demo(tmp_path, capsys, upscale):
    out = tmp_path / "demo.mp4"
    assert main(["demo", "--out", str(out), "--seed", "1", *([] if upscale else ["--no-upscale"])]) == 0
    assert "with sound" in capsys.readouterr().out
    size = 256 if upscale else 128
    assert size_of(out) == (size, size)
    with av.open(str(out)) as film:
        audio = film.streams.audio[0]
        assert film.streams.video[0].frames == 49
        assert float(audio.duration * audio.time_base) == pytest.approx(49 / 25, abs=0.03)
    with Image.open(out.with_suffix(".png")) as sheet:
        assert sheet.size == (6 * size, 2 * size)


def test_seeds_script_keyframes_and_a_draft_that_drives(generate, random_models, photograph, tmp_path, capsys):
    """From a draft of the voice to clips of two seeds with it, then a dub, a retake and an extension of one."""
    (tmp_path / "script.txt").write_text(f"0.2 {PROMPT}\n0.2 {PROMPT}\n", encoding="utf-8")
    common = ["generate", "--models", str(random_models), "--script", str(tmp_path / "script.txt"), *SMALL]
    assert main([*common, "--audio-only", "--out", str(tmp_path / "draft.wav")]) == 0
    assert soundfile.info(tmp_path / "draft.wav").duration == pytest.approx(0.44, abs=0.05)
    code, _, said = generate(tmp_path / "a.mp4", "--audio", str(tmp_path / "draft.wav"), "--seeds", "3,5",
                                  "--keyframe", f"last={photograph}", "--window", "0.3", "--overlap", "0.16")
    assert code == 0, said
    assert names(tmp_path) == ["a_3.mp4", "a_5.mp4", "draft.wav", "script.txt"]
    clip, edit = str(tmp_path / "a_3.mp4"), ["--models", str(random_models), "--steps", "1", "--device", "cpu"]
    for name, *options in (("dub", "--audio", str(tmp_path / "draft.wav"), "--mouth", "0.5,0.5,0.5,0.9"),
                           ("retake", "--start", "0.1", "--end", "0.2"), ("extend", "--seconds", "0.2")):
        out = tmp_path / f"{name}.mp4"
        assert main([name, clip, "--out", str(out), *options, *edit]) == 0, capsys.readouterr().err
        assert size_of(out) == (64, 32)


@pytest.mark.parametrize("link", [None, Path.symlink_to, Path.hardlink_to])
def test_no_command_writes_over_what_it_reads(generate, random_models, tmp_path, capsys, link):
    film = tmp_path / "film.mp4"
    film.write_bytes(b"precious")
    out = film if link is None else tmp_path / "out.mp4"
    if link is not None:
        link(out, film)
    models = ["--models", str(random_models), "--out", str(out), "--prompt", PROMPT]
    calls = [["dub", str(film), "--audio", "v.wav"], ["dub", "c.mp4", "--audio", str(film)], ["extend", str(film)],
             ["retake", str(film), "--start", "0", "--end", "1"], ["generate", "--from", str(film)],
             ["generate", "--audio", str(film)], ["generate", "--keyframe", f"1={film}"],
             ["live", "--audio", str(film)]]
    for call in calls:
        assert main([*call, *models]) == 2, call
        assert "is the source itself" in capsys.readouterr().err
    assert film.read_bytes() == b"precious" and len(names(tmp_path)) == (1 if link is None else 2)


def test_inspect_of_a_damaged_file_is_an_answer(tmp_path, capsys):
    (tmp_path / "a.safetensors").write_text("<!DOCTYPE html><html></html>")
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 1
    assert "web page" in capsys.readouterr().out
    assert main(["inspect", "/none", "-v"]) == Exit.WEIGHTS
    said = capsys.readouterr().err  # verbose: also where
    assert "Traceback" in said and said.splitlines()[-1].startswith("magihuman: /none: ")


# Bad input: each row prepares a folder and gives arguments, and words that the one sentence must have.


def models_with(folder: Path, random_models: Path, part: str) -> Path:
    """A folder of models whose part may be spoilt: an own copy of it, the rest linked."""
    folder = folder / "models"
    folder.mkdir()
    for path in random_models.iterdir():
        if path.name == part:
            shutil.copytree(path, folder / part)
        elif path.name != "base":  # so that only one network can make the clip
            (folder / path.name).symlink_to(path)
    return folder / part


def shard(folder: Path) -> Path:
    return folder / "model-00001-of-00003.safetensors"


def lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5368709120\n")


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": os.getcwd}))


def not_a_number(folder: Path) -> None:
    key = "block.layers.2.mlp.down_proj.weight"
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if key in tensors:
            tensors[key][0, 0] = float("nan")
            save_file(tensors, path)


SPOILT = {  # part, what is done to its folder, words: one of each kind of fault, and of each moment it is found at
    "lfs pointer": ("distill", lambda f: lfs_pointer(shard(f)), ["model-00001-of-00003", "Git-LFS", "git lfs pull"]),
    "missing shard": ("distill", lambda f: shard(f).unlink(), ["distill", "missing", "model-00001-of-00003"]),
    "damaged index": ("distill", lambda f: lfs_pointer(f / "model.safetensors.index.json"), ["index.json"]),
    "not a number": ("distill", not_a_number, ["distill", "down_proj", "not numbers"]),
    "hostile turbo vae": ("turbo_vae", lambda f: pickled(f / "checkpoint-340000.ckpt"), ["warning", "ckpt"]),
    "pointer as audio vae": ("audio_vae", lambda f: lfs_pointer(f / "model.safetensors"), ["audio_vae", "Git-LFS"]),
    "no tokenizer": ("text_encoder", lambda f: (f / "tokenizer.json").unlink(), ["tokenizer.json"]),
    "damaged tokenizer": ("text_encoder", lambda f: lfs_pointer(f / "tokenizer.json"), ["tokenizer.json", "give"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_models(name, generate, random_models, tmp_path):
    part, spoil, words = SPOILT[name]
    spoil(models_with(tmp_path, random_models, part))
    out = tmp_path / "out"
    code, _, said = generate(out / "a.mp4", models=tmp_path / "models")
    if name == "hostile turbo vae":  # the slower video VAE steps in, and a warning says why
        assert code == 0 and names(out) == ["a.mp4"]
    else:
        assert code == (Exit.INPUT if "tokenizer" in name else Exit.WEIGHTS) and names(out) == [], said
        assert (last := said.splitlines()[-1]).startswith("magihuman: ") and all(word in last for word in words)
    assert "Traceback" not in said and all(word in said for word in words)


def text_file(name: str, content: bytes):
    def make(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return make


def half_image(folder: Path) -> str:
    Image.effect_noise((64, 64), 50).save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    return text_file("half.jpg", content[: len(content) // 2])(folder)


def audio_file(name: str, samples: np.ndarray):
    def make(folder: Path) -> str:
        soundfile.write(folder / name, samples, 44100, subtype="FLOAT")
        return str(folder / name)

    return make


def a_pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return str(folder / "pipe")


def an_image(folder: Path) -> str:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return str(folder / "a.png")


BAD = {  # arguments (functions get a folder to write into), words of the sentence
    "empty prompt": (["--prompt", "  "], ["prompt is empty"]),
    "prompt file missing": (["--prompt-file", "/none.txt"], ["/none.txt", "No such file", "Check"]),
    "prompt file empty": (["--prompt-file", text_file("p.txt", b" \n")], ["p.txt", "is empty"]),
    "prompt file is no text": (["--prompt-file", text_file("p.txt", b"\xff\xfe\x00")], ["p.txt", "UTF-8"]),
    "prompt file is a folder": (["--prompt-file", str], ["prompt cannot be read"]),
    "negative file missing": (["--negative-file", "/none.txt"], ["/none.txt", "negative prompt"]),
    "image missing": (["--image", "/none.png"], ["/none.png", "no such image", "Check"]),
    "image is a text": (["--image", text_file("a.png", b"hello")], ["a.png", "is not an image", "PNG"]),
    "image is cut off": (["--image", half_image], ["half.jpg", "cannot be decoded", "Give"]),
    "image is empty": (["--image", text_file("a.png", b"")], ["a.png", "is empty", "Give"]),
    "image is a folder": (["--image", str], ["is a folder", "image"]),
    "image is a pointer": (["--image", text_file("a.png", b"version https://git-lfs.github.com")],
                           ["a.png", "Git-LFS", "pull"]),
    "audio missing": (["--audio", "/none.wav"], ["/none.wav", "no such audio", "Check"]),
    "audio is a text": (["--audio", text_file("a.wav", b"hello")], ["a.wav", "cannot be read as sound", "Give"]),
    "audio is empty": (["--audio", audio_file("empty.wav", np.zeros((0, 1)))], ["empty.wav", "no sound", "Give"]),
    "audio is a picture": (["--audio", an_image], ["a.png", "sound", "Give"]),
    "audio is not numbers": (["--audio", audio_file("nan.wav", np.full((9, 1), np.nan))], ["nan.wav", "not numbers"]),
    "no seconds": (["--seconds", "0"], ["seconds is 0", "above 0"]),
    "no width": (["--width", "0"], ["width is 0", "32 or more"]),
    "unknown target": (["--upscale", "8k"], ["upscale is '8k'", "540p"]),
    "models missing": (["--models", "/none"], ["/none", "no such folder"]),
    "models empty": (["--models", lambda folder: str(folder / "out")], ["out", "missing", "--part"]),
    "models is a file": (["--models", text_file("m", b"x")], ["is a file", "folder"]),
    "vae as network": (["--part", "distilled=audio"], ["audio VAE", "network", "Choose"]),
    "unknown part": (["--part", "vae=audio"], ["'vae'", "video_vae"]),
    "no mp4": (["--out", "clip.avi"], ["clip.avi", ".mp4"]),
    "out in a file": (["--out", lambda folder: text_file("f", b"")(folder) + "/a.mp4"],
                      ["cannot be written", "Choose"]),
    "device without values": (["--device", "meta"], ["device meta cannot be used"]),
    "image is a pipe": (["--image", a_pipe], ["a pipe", "image"]),
    "audio is a pipe": (["--audio", a_pipe], ["a pipe", "audio"]),
    "prompt file is a pipe": (["--prompt-file", a_pipe], ["a pipe", "Save"]),
    "prompt file is a device": (["--prompt-file", "/dev/zero"], ["/dev/zero", "a device"]),
    "seconds beyond all": (["--seconds", "1e300"], ["seconds is 1e+300", "up to"]),
    "seconds are no number": (["--seconds", "nan"], ["seconds is nan"]),
    "window is no number": (["--window", "nan"], ["window"]),
    "overlap is no number": (["--overlap", "nan"], ["overlap"]),
    "window beyond all": (["--window", "1e300"], ["window"]),
    "width beyond all": (["--width", "99999999999"], ["width is 99999999999"]),
    "upscale beyond all": (["--upscale", "999999999x32"], ["width is 999999999"]),
    "a prompt with half a character": (["--prompt", "a woman \udce9 says"], ["prompt", "character"]),
    "no such device": (["--device", "warp9"], ["warp9", "cpu"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, generate, random_models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audio").symlink_to(random_models / "audio_vae" / "model.safetensors")
    (tmp_path / "out").mkdir()
    given, words = BAD[name]
    given = [value(tmp_path) if callable(value) else value for value in given]
    before = names(tmp_path)
    code, _, said = generate(tmp_path / "out" / "a.mp4", *given)
    weights = name in ("models empty", "vae as network")
    assert code == (Exit.WEIGHTS if weights else Exit.INPUT) and "Traceback" not in said, said
    last = said.splitlines()[-1]
    assert last.startswith("magihuman: ")
    assert last.count(". ") <= 1, "one sentence, and one with the remedy"
    for word in words:
        assert word in last
    assert names(tmp_path / "out") == []
    assert names(tmp_path) == before


@pytest.mark.parametrize("arguments", [
    ["generate"], ["generate", "--models", "x", "--prompt", "a", "--prompt-file", "b"],
    ["generate", "--models", "x", "--prompt", "a", "--part", "distilled"],
    ["generate", "--models", "x", "--prompt", "a", "--seed", "1.5"], ["dance"],
])  # fmt: skip
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: magihuman" in capsys.readouterr().err


def test_a_mistyped_word_is_put_right(capsys):
    for arguments, meant in ((["genrate"], "generate"), (["demo", "--sede", "1"], "--seed"),
                             (["demo", "--mode", "distiled"], "distilled")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert capsys.readouterr().err.endswith(f"Did you mean {meant}?\n")


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 0
    assert "magihuman demo" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert capsys.readouterr().out == f"magihuman {version}\n"


def test_every_command_has_examples_that_its_parser_takes():
    parser = build_parser()
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    assert sorted(EXAMPLES) == sorted(commands)
    for name, lines in EXAMPLES.items():
        assert lines
        for line in lines:
            assert parser.parse_args(shlex.split(line)).run
            assert f"magihuman {line}" in commands[name].format_help()


def test_people_read_of_steps_and_not_of_seconds_in_engineers_words(generate, tmp_path):
    code, _, said = generate(tmp_path / "a.mp4", "--upscale", "96x64", "--sr-steps", "1")
    assert code == 0 and "1 of 5: reading the prompt" in said and "5 of 5: writing the picture" in said
    assert "tip: Prompt: " in said and "loaded in" not in said and "tokens" not in said
    assert "warning: Prompt" not in said


def test_all_missing_parts_are_named_at_once_with_address_size_and_folder(generate, tmp_path):
    (tmp_path / "models").mkdir()
    code, _, said = generate(tmp_path / "a.mp4", models=tmp_path / "models")
    assert code == Exit.WEIGHTS
    last = said.splitlines()[-1]
    assert all(name in last for name in ("the distilled network", "the text encoder", "the audio VAE", "the Turbo VAE"))
    for part in ("distilled", "text_encoder", "audio_vae", "turbo_vae"):
        entry = download(part, EIGHT_BITS)
        assert entry.address in said and entry.folder in said and entry.size in said


def test_a_prompt_too_short_for_super_resolution_is_refused_before_sampling(generate, tmp_path):
    code, _, said = generate(tmp_path / "a.mp4", "--prompt", "hello", "--upscale", "96x64", "--steps", "1000")
    assert code == 2 and "too short for super-resolution" in said.splitlines()[-1]


# In a process of its own: signals, limits, imports


def start(*arguments: str, stdin: int | None = None) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *arguments], stdin=stdin, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=environment,
                            # A test run in the background inherits that SIGINT is ignored, and would hand it on.
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted_in_the_middle(random_models, tmp_path, number, code):
    process = start("-m", "magihuman_core", "generate", "--models", str(random_models), "--prompt", PROMPT,
                    "--out", str(tmp_path / "a.mp4"), *SMALL, "--steps", "1000")
    said = b""
    deadline = time.monotonic() + 120
    while b"/1000 [" not in said and time.monotonic() < deadline and process.poll() is None:
        said += os.read(process.stderr.fileno(), 4096)
    process.send_signal(number)
    _, rest = process.communicate(timeout=60)
    said = (said + rest).decode()
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert names(tmp_path) == []
    if number == signal.SIGINT:
        assert said.splitlines()[-1] == "magihuman: interrupted; no file is left half-written."


def test_full_disk(generate, tmp_path):
    with full_disk(3000):
        code, _, said = generate(tmp_path / "a.mp4")
    assert code == Exit.MACHINE and names(tmp_path) == []
    assert said.splitlines()[-1] == (
        f"magihuman: {tmp_path / 'a.mp4'}: cannot be written (File too large); nothing is left there. "
        "Free some space or choose another folder.")


def test_help_does_not_wait_for_torch():
    program = "import sys, magihuman_core.cli.program as c; c.build_parser(); print('torch' in sys.modules)"
    process = start("-c", program)
    out, said = process.communicate(timeout=60)
    assert out.strip() == b"False", said
