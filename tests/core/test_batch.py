"""`magihuman batch`: many clips from a jobs file, here and on Ray, stopped in every way, and every kind of bad file."""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from magihuman_core.cli import main
from magihuman_core.cli.batch import cluster
from magihuman_core.cli.batch.cluster import shares
from magihuman_core.cli.batch.jobs import Job, line_parsers, lines_in_words, parse_line
from magihuman_core.cli.batch.page import write_thumbnail
from magihuman_core.cli.program import build_parser
from magihuman_core.errors import InputError
from magihuman_core.loading.folder import ModelFolder
from magihuman_core.media.frames import Frames
from magihuman_core.pipeline import parts as pipeline_parts
from magihuman_core.pipeline.clip import Clip
from magihuman_core.pipeline.parts import Parts
from magihuman_core.runtime.main_memory import MainMemory

from .golden import ROOT, names

PROMPT = "A woman in a dark jacket looks calmly into the camera and says good morning."
SMALL = {"prompt": PROMPT, "width": 64, "height": 32, "seconds": 0.4, "steps": 1}


def write(folder: Path, *jobs: dict | str) -> Path:
    path = folder / "jobs.jsonl"
    lines = (job if isinstance(job, str) else json.dumps({**SMALL, **job}) for job in jobs)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def clips(folder: Path) -> dict:
    """What the manifest says, so far."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8"))["clips"] if path.exists() else {}


@pytest.fixture
def batch(random_models, tmp_path, capsys):
    """batch(*arguments): exit code, standard output and error output, of tmp_path's jobs.jsonl made in this process."""
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["batch", str(tmp_path / "jobs.jsonl"), "--out", str(tmp_path / "out"), "--device", "cpu",
                     "--models", str(random_models), "--workers", "0", *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def start(random_models, tmp_path):
    """start(*arguments): the same in a process of its own. With Ray, everything of it ends with the test."""
    begun: list[psutil.Process] = []

    def run(*arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "magihuman_core", "batch", str(tmp_path / "jobs.jsonl"), "--out",
             str(tmp_path / "out"), "--device", "cpu", "--models", str(random_models), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        begun.append(psutil.Process(process.pid))
        return process

    yield run
    for process in begun:
        for left in [*_children(process), process]:
            if left.is_running():
                left.kill()


def _children(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True) if process.is_running() else []


def wait_for(process: subprocess.Popen, ready) -> None:
    deadline = time.monotonic() + 200
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_clips_are_those_of_single_runs_and_are_not_made_twice(batch, random_models, tmp_path, photograph, capsys):
    """All commands, files relative to the jobs file, several seeds of a line; then again, with some of it changed."""
    shutil.copy(photograph, tmp_path / "a.jpg")
    single = ["--models", str(random_models), "--device", "cpu", "--steps", "1"]
    assert main(["generate", *single, "--prompt", PROMPT, "--image", str(photograph), "--width", "64", "--height", "32",
                 "--seconds", "0.4", "--seeds", "3,5", "--out", str(tmp_path / "single.mp4")]) == 0
    shutil.copy(tmp_path / "single_3.mp4", tmp_path / "old.mp4")
    assert main(["retake", str(tmp_path / "old.mp4"), "--start", "0.1", "--end", "0.2", *single,
                 "--out", str(tmp_path / "retaken.mp4")]) == 0
    edits = {"command": "retake", "clip": "old.mp4", "start": 0.1, "end": 0.2, "steps": 1, "out": "edits/b.mp4"}
    write(tmp_path, {"image": "a.jpg", "seeds": [3, 5]}, "", json.dumps(edits), {"seed": 7, "audio-only": True,
          "width": None, "height": None}, {"seed": 9, "save_latents": "c.safetensors"})
    capsys.readouterr()
    code, answer, said = batch()
    assert code == 0, said
    out = tmp_path / "out"
    assert names(out) == ["0001_3.mp4", "0001_5.mp4", "0004.wav", "0005.mp4", "c.safetensors", "edits", "index.html",
                          "manifest.json", "thumbnails"]
    for made, alone in (("0001_3", "single_3"), ("0001_5", "single_5"), ("edits/b", "retaken")):
        assert (out / f"{made}.mp4").read_bytes() == (tmp_path / f"{alone}.mp4").read_bytes(), made
    assert answer.splitlines()[-1].startswith("5 of 5 clips are there: ")
    assert list(clips(out)) == ["0001_3.mp4", "0001_5.mp4", "edits/b.mp4", "0004.wav", "0005.mp4"]
    with Image.open(out / "thumbnails/edits/b.jpg") as small:
        assert small.size == (64, 32)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 4 and 'href="edits/b.mp4"' in page and "64x32" in page

    (out / "0001_5.mp4").write_bytes(b"damaged")
    (out / "c.safetensors").unlink()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    shutil.copy(tmp_path / "single_5.mp4", tmp_path / "old.mp4")  # other content under the same name
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    code, answer, said = batch("--tile", "60")  # how a clip is made does not make it another one
    assert code == 0 and "2 of them from before" in answer, said
    changed = [path.relative_to(out).as_posix() for path in before if not path.exists()
               or path.stat().st_mtime_ns != before[path]]
    assert sorted(name for name in changed if name.endswith((".mp4", ".wav"))) == ["0001_5.mp4", "0005.mp4",
                                                                                  "edits/b.mp4"]
    assert (out / "0001_5.mp4").read_bytes() == (tmp_path / "single_5.mp4").read_bytes()
    assert (out / "c.safetensors").exists()


def test_models_are_loaded_once(batch, tmp_path, caplog):
    from magihuman_core.pipeline import stages

    loaded = []
    original = stages.load_dit

    def counted(*arguments, **options):
        loaded.append(arguments)
        return original(*arguments, **options)

    write(tmp_path, *({"seed": seed} for seed in range(3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "load_dit", counted)
        # Main memory of the machine that runs the tests may be full.
        patch.setattr(pipeline_parts, "main_memory", lambda: MainMemory(64 << 30, 64 << 30))
        assert batch()[0] == 0
    assert len(loaded) == 1


def test_kept_parts_wait_in_main_memory(monkeypatch):
    available = 64 << 30
    monkeypatch.setattr(pipeline_parts, "main_memory", lambda: MainMemory(64 << 30, available))

    class Part(torch.nn.Module):  # there is no card to bring it to
        place = ""

        def to(self, device):
            self.place = str(device)
            return self

    def load(source: str, *, device: torch.device, **options: object) -> Part:
        return Part().to(device)

    parts = Parts(ModelFolder(Path(), {}, {}), torch.device("cuda"), keep=True)
    first = parts.load(load, "a", dtype="bf16")
    assert first.place == "cuda"
    parts.put_aside()
    assert first.place == "cpu"  # so that the next part has the card for itself
    assert parts.load(load, "a", dtype="bf16") is first and first.place == "cuda"
    other = parts.load(load, "a", dtype="fp32")
    assert other is not first and list(parts.kept.values()) == [(((), {"dtype": "fp32"}), other)]
    parts.load(load, "b", resident_blocks=3)  # its other blocks stream: it is not whole
    available = 20 << 30
    parts.load(load, "c")
    assert len(parts.kept) == 1


def test_a_job_that_fails_stops_no_other(batch, tmp_path):
    write(tmp_path, {"image": "none.png"}, {"seed": 1}, {"width": 0}, {"steps": 1000, "seconds": 40, "out": "slow.mp4"})
    code, answer, said = batch("--timeout", "8")
    assert code == 2, said
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("line ")]
    assert "0001.mp4: " in lines[0] and "none.png: there is no such image" in lines[0]
    assert "line 3, 0003.mp4: width is 0" in lines[1]
    assert "line 4, slow.mp4: took more than 8 s" in lines[2] and len(lines) == 3
    assert answer.splitlines()[-1].startswith("1 of 4 clips are there, 3 failed: ")
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert page.count('class="failed"') == 3 and "there is no such image" in page
    assert names(tmp_path / "out") == ["0002.mp4", "index.html", "manifest.json", "thumbnails"]


BAD = [  # line, words of its fault
    ('{"prompt": "a"', ["not JSON"]),
    ("[1]", ["[1]", "expected an object"]),
    ('{"prompt": "a", "sede": 1}', ["generate has no option 'sede'", "Did you mean seed?"]),
    ('{"command": "dup", "clip": "a.mp4"}', ["command is 'dup'", "Did you mean dub?"]),
    ('{"command": "dub", "clip": "a.mp4"}', ["--audio"]),
    ('{"seed": 1}', ["--prompt"]),
    ('{"prompt": "a", "seed": 1.5}', ["--seed", "1.5"]),
    ('{"prompt": "a", "mode": "distiled"}', ["distiled", "Did you mean distilled?"]),
    ('{"prompt": "a", "loop": "yes"}', ["loop is 'yes'", "true or false"]),
    ('{"prompt": {"a": 1}}', ["prompt is", "expected text"]),
    ('{"prompt": "a", "prompt": "b"}', ["'prompt' twice"]),
    ('{"prompt": "a", "out": "../a.mp4"}', ["../a.mp4", "within the batch's folder"]),
    ('{"prompt": "a", "out": "a.avi"}', ["a.avi", ".mp4"]),
    ('{"prompt": "a", "out": "twice.mp4"}', None),
    ('{"prompt": "a", "out": "Twice.mp4"}', ["Twice.mp4 is written by line 14, too"]),
    ('{"prompt": "a", "seeds": "1,1"}', ["--seeds", "different"]),
    ('{"prompt": "a", "from": "out/twice.mp4"}', ["twice.mp4 is read here, but line 14 writes it"]),
    ('{"prompt": "a", "keyframe": ["0=a.png", "0.0=b.png"]}', ["Two of --keyframe are at the same time"]),
    ('{"prompt": "a", "from": "b.mp4", "loop": true}', ["Leave out --image"]),
    ('{"prompt": "a", "audio_only": true, "image": "a.png"}', ["Leave out --image"]),
    (json.dumps({"prompt": "a", "out": "\u00e9" * 123 + ".mp4", "seeds": "1,222222"}), ["longer than 255 bytes"]),
    ('{"prompt": "a", "out": "twice.mp4/b.mp4"}', ["twice.mp4/b.mp4 lies in twice.mp4, a file that line 14 writes"]),
    ('{"prompt": "a", "out": "manifest.json/b.mp4"}', ["lies in manifest.json, a file of the batch"]),
    ('{"prompt": "a", "models": "nowhere"}', None),  # said when all lines can be read
]


def test_all_bad_lines_are_named_at_once_and_nothing_is_made(batch, tmp_path):
    write(tmp_path, *(line for line, _ in BAD))
    code, answer, said = batch()
    assert code == 2 and not answer and "Traceback" not in said
    lines = dict(line.split(": ", 1) for line in said.splitlines()[:-1])
    for number, (_, words) in enumerate(BAD, start=1):
        found = lines.pop(f"line {number}", None)
        assert (found is None) == (words is None), (number, found)
        assert all(word in found for word in words or ()), (number, found)
    assert lines == {}
    assert f"jobs.jsonl: {sum(words is not None for _, words in BAD)} lines cannot be used" in said.splitlines()[-1]
    assert names(tmp_path) == ["jobs.jsonl"]


def test_a_clip_has_its_small_picture_however_its_name_is_written(tmp_path):
    frames = Frames.of(torch.full((3, 32, 64, 3), 200, dtype=torch.uint8))
    arguments = argparse.Namespace(seed=0)
    for name in ("up.mp4", "UP2.MP4"):
        job = Job(1, name, tmp_path, arguments)
        Clip(frames, torch.zeros(2, 3 * 1764)).save(tmp_path / name.lower())
        (tmp_path / name.lower()).rename(job.out)
        write_thumbnail(job)
        assert Image.open(job.thumbnail).size == (64, 32)


def test_other_bad_input(batch, tmp_path, monkeypatch):
    def refused(*words: str, arguments=()) -> None:
        code, _, said = batch(*arguments)
        assert code == 2, said
        assert all(word in said for word in words), said
        assert said.splitlines()[-1].startswith("magihuman: ")

    refused("jobs.jsonl", "jobs file cannot be read")
    write(tmp_path, "")
    refused("jobs.jsonl", "is empty")
    write(tmp_path, {"models": "nowhere"}, {"models": "nowhere", "seed": 1}, {})
    refused("lines 1-2: ", "nowhere: there is no such folder", "2 lines")
    write(tmp_path, {})
    refused("--workers 0", "--address", arguments=["--address", "auto"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text('{"mine": 1}')
    refused("manifest.json", "is not the manifest of a batch")
    assert (tmp_path / "out/manifest.json").read_text() == '{"mine": 1}'
    (tmp_path / "out/manifest.json").rename(tmp_path / "out/index.html")
    refused("index.html", "is not the page of a batch")
    assert (tmp_path / "out/index.html").read_text() == '{"mine": 1}'
    (tmp_path / "out/index.html").unlink()
    write(tmp_path, {"image": "out/thumbnails/0001.jpg"})
    refused("is read here, but line 1 writes it")
    write(tmp_path, {})
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").write_text("")
    refused("out: cannot be used")
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    refused("head:6379", "Ray is not installed", "magihuman[batch]", arguments=["--workers", "2", "--address",
                                                                              "head:6379"])


def test_without_ray_clips_are_made_one_after_another(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write(tmp_path, {})
    code, _, said = batch("--workers", "2")
    assert code == 0 and said.count("Ray is not installed, so the clips are made one after another") == 1
    assert (tmp_path / "out/0001.mp4").exists()


def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(start, batch, tmp_path):
    write(tmp_path, {}, {"seed": 1, "steps": 1000, "seconds": 4}, {"seed": 2})
    process = start("--workers", "0")
    wait_for(process, lambda: clips(tmp_path / "out"))
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "1 of 3 clips are there. The same command goes on with the others." in said and "Traceback" not in said
    assert names(tmp_path / "out") == ["0001.mp4", "index.html", "manifest.json", "thumbnails"]
    write(tmp_path, {}, {"seed": 1}, {"seed": 2})
    code, answer, said = batch()
    assert code == 0 and "3 of 3 clips are there, 1 of them from before" in answer, said


def test_a_line_is_parsed_as_the_command_line_is(tmp_path):
    """Options exist once: each example gives the same arguments, with absolute paths, and each option is known."""
    pairs = [
        ("generate --models demo --prompt a --keyframe 0.5=/a.png --keyframe last=/b.png --upscale 540p",
         {"models": "demo", "prompt": "a", "keyframe": {"0.5": "/a.png", "last": "/b.png"}, "upscale": "540p"}),
        ("generate --models demo --prompt=-a --from /a.mp4 --denoise 0.5 --lora /l.safetensors:0.5 --loop",
         {"models": "demo", "prompt": "-a", "from": "/a.mp4", "denoise": 0.5, "lora": {"/l.safetensors": 0.5},
          "loop": True, "script": None, "audio_only": False}),
        ("dub --models demo --audio /v.wav --mouth 0.5,0.65,0.4,0.3 -- /-c.mp4",
         {"command": "dub", "models": "demo", "audio": "/v.wav", "mouth": [0.5, 0.65, 0.4, 0.3], "clip": "/-c.mp4"}),
        ("extend --models demo /c.mp4 --seconds 4 --sr-steps 3",
         {"command": "extend", "models": "demo", "clip": "/c.mp4", "seconds": 4, "sr_steps": 3}),
    ]
    for line, fields in pairs:
        typed = vars(build_parser().parse_args(shlex.split(line)))
        found = vars(parse_line(json.dumps(fields), line_parsers(), {}, tmp_path))
        for ours in (typed, found):
            for name in ("verbose", "command", "out"):
                ours.pop(name, None)
        assert found == typed
    (commands,) = (action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    for name, parser in line_parsers().items():
        ours, theirs = ({action.dest for action in each._actions} for each in (parser, commands[name]))
        assert ours == theirs - {"verbose"}


def test_what_the_command_line_says_of_models_holds_for_lines_that_do_not():
    given = {"models": "demo", "dtype": "int8", "lora": [("/a", 1.0)]}
    plain = parse_line('{"prompt": "a"}', line_parsers(), given, Path("/jobs"))
    own = parse_line('{"prompt": "a", "lora": "b:2", "models": "m"}', line_parsers(), given, Path("/jobs"))
    assert (plain.models, plain.dtype, plain.lora) == ("demo", "int8", [("/a", 1.0)])
    assert (own.models, own.dtype, own.lora) == (str(Path("/jobs/m")), "int8", [(str(Path("/jobs/b")), 2.0)])
    with pytest.raises(InputError, match="models is missing"):
        parse_line('{"prompt": "a"}', line_parsers(), {}, Path("/jobs"))
    assert lines_in_words([3, 5, 6, 7, 9, 5]) == "lines 3, 5-7, 9" and lines_in_words([4]) == "line 4"


def machine(**resources: float) -> dict:
    return {"Alive": True, "Resources": resources}


def test_shares_of_machines():
    cards = [machine(CPU=32.0, GPU=4.0), machine(CPU=16.0, GPU=1.0), machine(CPU=64.0)]
    assert shares(cards, None, True) == (5, {"num_gpus": 1, "num_cpus": 8})
    assert shares(cards, 10, True) == (10, {"num_gpus": 0.5, "num_cpus": 4})
    assert shares(cards, None, False) == (28, {"num_cpus": 4})
    assert shares([machine(CPU=2.0)], None, True) == (1, {"num_cpus": 2})
    assert shares([machine(CPU=2.0)], 4, True) == (4, {"num_cpus": 0.5})
    assert shares([machine(CPU=4.0)] * 3, 2, True) == (2, {"num_cpus": 4})  # no machine has six
    # No worker waits for what no machine has.
    assert shares([machine(GPU=2.0)], None, True) == (2, {"num_gpus": 1, "num_cpus": 0})
    assert shares([machine(CPU=8.0)] * 2, 3, True) == (3, {"num_cpus": 4})
    assert shares([machine(CPU=2.0, GPU=2.0)], 4, True) == (4, {"num_gpus": 0.5, "num_cpus": 0})
    assert 6 * shares([machine(CPU=8.0, GPU=1.0)], 6, True)[1]["num_gpus"] <= 1
    with pytest.raises(InputError, match="no machine"):
        shares([{**machine(CPU=4.0), "Alive": False}], None, True)


def test_nothing_of_ray_is_imported_before_it_is_used():
    program = ("import sys, magihuman_core.cli.program as c; c.build_parser(); "
               "print('magihuman_core.cli.batch.cluster' in sys.modules, 'ray' in sys.modules, 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "True False False\n"


# With Ray


def ray_workers(process: subprocess.Popen) -> list[psutil.Process]:
    found = []
    for child in _children(psutil.Process(process.pid)):
        try:
            if child.cmdline()[0].startswith("ray::Worker"):
                found.append(child)
        except (psutil.Error, IndexError):
            continue
    return found


def test_an_address_that_does_not_answer(start, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install magihuman[batch]")
    write(tmp_path, {})
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for address, words in ((f"127.0.0.1:{port}", "nobody answers there"),
                           (f"ray://127.0.0.1:{port}", "nobody answers there"), ("here", "expected HOST:PORT")):
        started = time.monotonic()
        process = start("--address", address)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2 and time.monotonic() - started < 30, said
        last = said.splitlines()[-1]
        assert last.startswith("magihuman: ") and address in last and words in last and "Traceback" not in said


def test_workers_and_the_driver_are_killed_and_every_clip_is_made(start, random_models, tmp_path):
    """A worker is killed in the middle of a clip, later all of it at once; the same command then goes on."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install magihuman[batch]")
    long = {2: 200, 3: 200}  # steps of the clips in whose middle something is killed
    jobs = [{**SMALL, "seed": seed, "steps": long.get(seed, 1)} for seed in range(1, 6)]
    write(tmp_path, *jobs, {"image": "none.png"})
    out = tmp_path / "out"
    process = start("--workers", "1")
    wait_for(process, lambda: clips(out))
    time.sleep(0.5)  # the second clip is begun
    (worker,) = ray_workers(process)
    worker.kill()
    wait_for(process, lambda: any(clip["attempts"] == 2 for clip in clips(out).values()))
    for killed in (psutil.Process(process.pid), *_children(psutil.Process(process.pid))):  # as in a power cut
        killed.kill()
    process.communicate()
    before = clips(out)
    assert 2 <= len(before) < 6
    times = {name: (out / name).stat().st_mtime_ns for name, clip in before.items() if not clip["error"]}

    process = start("--workers", "2", "--timeout", "100")
    answer, said = process.communicate(timeout=200)
    assert process.returncode == 2, said  # for the missing picture alone
    assert f"5 of 6 clips are there, {len(times)} of them from before, 1 failed" in answer, answer
    assert "none.png: there is no such image" in said
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    assert names(out) == [*(f"{n:04d}.mp4" for n in range(1, 6)), "index.html", "manifest.json", "thumbnails"]
    alone = tmp_path / "alone"
    for n, job in enumerate(jobs, start=1):
        options = [part for name, value in job.items() for part in (f"--{name}", str(value))]
        assert main(["generate", "--models", str(random_models), "--device", "cpu", *options, "--out",
                     str(alone / f"{n:04d}.mp4")]) == 0
        assert (out / f"{n:04d}.mp4").read_bytes() == (alone / f"{n:04d}.mp4").read_bytes(), n
