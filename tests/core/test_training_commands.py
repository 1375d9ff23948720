"""The training commands: what their user can mend ends them with a sentence, before work is spent."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.core.test_training_masks import stored_set
from training import checkpoints, common, data, evaluate, export, rows, start_from_demo, train_network
from training import options as options_module
from training.common import Stop
from training.files import DEMO

TRAINING = Path(export.__file__).parent
BASH = shutil.which("bash") or "bash"
TRAIN_LORA = "train_lora --models demo --clips {tmp}/clips --name x --run {tmp}"
LORA_CLIPS = "lora_clips --models demo --out {tmp}/out --hats 3"


def call(monkeypatch, line, tmp_path):
    """Run a command in this process. Returns what it ended with."""
    module, *arguments = line.format(tmp=tmp_path).split()
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"training.{module}").main()
    return end.value.code


@pytest.mark.parametrize(("line", "words"), [
    (f"{TRAIN_LORA} --steps 0", "--steps: '0' is not possible, expected a whole number of 1 or more"),
    (f"{TRAIN_LORA} --save-every 0", "--save-every"),
    (f"{TRAIN_LORA} --batch 0", "--batch"),
    (f"{TRAIN_LORA} --seed -1", "--seed"),
    (f"{TRAIN_LORA} --seed 99999999999999999999", "--seed"),
    (f"{TRAIN_LORA} --minutes 0", "--minutes: '0' is not possible, expected a number above 0"),
    (f"{TRAIN_LORA} --rate nan", "--rate"),
    (f"{TRAIN_LORA} --rank 0", "--rank"),
    (f"{TRAIN_LORA} --threads 0", "--threads"),
    (f"{TRAIN_LORA} --name a/b", "expected a name without folders"),
    (f"{TRAIN_LORA} --role sr_540p", "invalid choice: 'sr_540p'"),
    (f"{TRAIN_LORA} --device warp", "'warp' cannot be used here"),
    (f"{LORA_CLIPS} --hats -3", "--hats"),
    (f"{LORA_CLIPS} --seconds nan", "--seconds"),
    (f"{LORA_CLIPS} --seconds -1", "--seconds"),
    (f"{LORA_CLIPS} --device warp", "--device"),
    ("evaluate --clips 1", "--clips"),
    ("evaluate_edits --clips 1", "--clips"),
    ("evaluate_lora x --clips 0", "--clips"),
    ("evaluate_lora x --run y", "unrecognized arguments: --run y"),
    ("evaluate --guidance 5 nan 5", "--guidance"),
    ("export --out x --overwrite-demo", "not allowed with argument"),
    ("data --count 0", "--count"),
    ("data --seed 3", "unrecognized arguments"),
    ("train_distilled --warm-up -1", "--warm-up"),
    ("train_video_vae --projection-windows 0", "--projection-windows"),
    ("train_video_vae --turbo --wan-decoder", "not allowed with argument"),
])  # fmt: skip
def test_options_that_are_not_possible_are_named(line, words, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, line, tmp_path) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("line", "words"), [
    (f"{LORA_CLIPS} --size 100 75", "--size 100 75 is not in multiples of 32: give 96 64"),
    (f"{LORA_CLIPS} --size 8 8", "width is 8"),
    ("lora_clips --models {tmp} --out {tmp}/out --hats 3", "are missing"),
    ("lora_clips --models demo --out {tmp}/out --films {tmp}/none", "none is no folder"),
    ("train_lora --models /nope --clips {tmp} --name x --run {tmp}", "holds no encoded clips"),
    (TRAIN_LORA, "holds no encoded clips"),
    ("data --run {tmp}/run --count 2", "--count 2 is too few for 11 sets, each of which needs 3 clips: give 75"),
    ("data --run {tmp}/run --sets square", "square is no set of clips"),
    ("data --run {tmp}/run --sets square_2s square_xs", "square_xs is no set of clips"),
    ("data --run {tmp}/run --count 30000 --sets square_1s portrait_1s", "a set can have 10000 clips"),
    ("train_super_resolution pairs --run {tmp}/run --count 3", "--count 3 is too few for 3 sets"),
    ("evaluate --folder {tmp} --clips 2", "holds no text_encoder"),
    ("evaluate --first-seed 99999 --clips 2", "Seeds from 100000 up are trained on"),
    ("evaluate_edits --first-seed 100000", "are trained on"),
    ("evaluate_lora {tmp}/none.safetensors --clips 1 --strengths 1", "none.safetensors"),
    ("preview --folder {tmp}", "holds no vae"),
    ("journal {tmp}", "holds no log.jsonl"),
    ("train_network base --run {tmp}/run", "run python -m training.train_network text"),
    ("train_driven --run {tmp}/run", "run python -m training.train_network base"),
    ("latents --run {tmp}/run", "run python -m training.train_video_vae"),
])  # fmt: skip
def test_what_cannot_be_worked_with_is_named_before_work_begins(line, words, tmp_path, monkeypatch):
    code = call(monkeypatch, line, tmp_path)
    assert isinstance(code, str) and words in code, code
    assert list(tmp_path.iterdir()) == []


def test_faults_of_the_system_are_sentences(tmp_path):
    @options_module.command
    def main():
        (tmp_path / "none" / "x").read_bytes()

    with pytest.raises(Stop, match="x: No such file or directory"):
        main()


@pytest.mark.parametrize("content", [b"\xff\xfe\xfa damaged", b"", b"PK\x03\x04" + bytes(range(256)), {"weights": 1},
                                     [1], {"step": 4}, {"step": "4", "modules": {}}])  # fmt: skip
def test_a_foreign_or_damaged_checkpoint_is_named(content, tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    path = folder / "step_0000004.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(Stop, match=r"step_0000004.pt (cannot be read|is no checkpoint|does not belong)"):
        train_network.load_network(tmp_path, "base")


def test_a_checkpoint_of_another_stage_is_named(tmp_path):
    start_from_demo.start(tmp_path, ["text", "super_resolution"])
    (tmp_path / "super_resolution").rename(tmp_path / "base")
    with pytest.raises(Stop, match=r"base/step_0000000.pt does not belong to this stage"):
        train_network.load_base(tmp_path)


def test_nobody_else_writes_into_a_folder_meanwhile(tmp_path):
    pytest.importorskip("fcntl")
    script = "import sys, pathlib; from training.common import alone\nwith alone(pathlib.Path(sys.argv[1])): pass"
    with common.alone(tmp_path):
        second = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert second.returncode == 1 and "Another process is writing into" in second.stderr
    assert "Traceback" not in second.stderr
    with common.alone(tmp_path):
        pass


def test_space_for_clips_is_taken_when_the_file_is_made(tmp_path):
    path = tmp_path / "video.npy"
    array = data.open_array(path, np.uint8, (2000, 1000))
    assert array.shape == (2000, 1000) and not array.any()
    if hasattr(os, "posix_fallocate"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size


def test_clips_that_the_disk_has_no_room_for_are_refused_and_leave_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(Stop, match=r"video.npy needs 2.0 GB, which cannot be had"):
            data.open_array(tmp_path / "video.npy", np.uint8, (2000, 1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_sets_of_latents_must_be_of_one_encoder_and_of_the_runs(tmp_path, monkeypatch):
    from training.text import build_tokenizer

    for name in ("landscape_2s", "square_2s"):
        stored_set(tmp_path / "clips" / name, 49, 8, 8, 6, 0)
    start_from_demo.start(tmp_path, ["video_vae", "audio_vae"])
    options = type("Options", (), {"run": tmp_path, "seed": 0})
    with pytest.raises(Stop, match="those of the run are now"):
        train_network.sources_of(options, build_tokenizer())
    (tmp_path / "clips" / "square_2s" / "encoders.json").write_text('{"video": "z", "audio": "b"}')
    with pytest.raises(Stop, match=r"square_2s were made with encoders .*'z'"):
        train_network.sources_of(options, build_tokenizer())


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A run that begins with the demo's files."""
    run = tmp_path_factory.mktemp("started")
    start_from_demo.start(run)
    return run


def trained_more(run, stage):
    """Put a checkpoint of one step more, whose weights are others, into a stage's folder."""
    state = checkpoints.load(run / stage)
    key = next(key for key, value in state["average"]["module"].items() if key.endswith("_proj.weight"))
    weights = {**state["average"]["module"], key: state["average"]["module"][key] + 0.01}
    checkpoints.save(run / stage, {**state, "step": 1, "average": {"steps": 1, "module": weights}})


def test_networks_that_do_not_belong_together_are_not_exported(started, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(started, run)
    assert list(export.trained_networks(run, checkpoints.load(run / "base")["config"]["latents"])) == [
        "base", "distilled", "super_resolution"]  # fmt: skip
    state = checkpoints.load(run / "base")
    encoder = next(key for key in state["average"]["module"] if key.startswith("1.") and key.endswith("_proj.weight"))
    state["average"]["module"][encoder] = state["average"]["module"][encoder] + 0.01
    checkpoints.save(run / "base", {**state, "step": 1})
    with pytest.raises(Stop, match=r"distilled was trained with text encoder \w+, the run's is now \w+: delete"):
        export.export(run, tmp_path / "out")
    shutil.rmtree(run / "distilled")
    with pytest.raises(Stop, match=r"super_resolution was trained with text encoder"):
        export.export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing is written before all is checked"
    shutil.rmtree(run / "super_resolution")
    assert {"base", "text_encoder"} <= export.export(run, tmp_path / "out").keys()


def test_a_driven_network_stands_for_the_distilled_one_that_it_began_with(started, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(started, run)
    state = checkpoints.load(run / "distilled")
    student = {key: value for key, value in state["average"]["module"].items() if key.startswith("0.")}
    known = {key: state["config"][key] for key in ("latents", "text_encoder")}
    before, _ = train_network.load_network(run, "distilled")
    for config, said in ((known, "which distilled it was trained with is not recorded"),
                         ({**known, "distilled": common.weights_hash(before)}, "")):  # fmt: skip
        checkpoints.save(run / "driven", {"step": 1, "config": config, "network": state["network"],
                                          "average": {"steps": 0, "module": student}})  # fmt: skip
        assert list(export.trained_networks(run, known["latents"])) == ["base", "driven", "super_resolution"]
        assert said in capsys.readouterr().out
    trained_more(run, "distilled")
    with pytest.raises(Stop, match="driven was trained with distilled"):
        export.trained_networks(run, known["latents"])


def test_a_weight_that_is_not_finite_leaves_all_files_as_they_were(started, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(started, run)
    broken = checkpoints.load(run / "super_resolution")
    next(iter(broken["average"]["module"].values())).view(-1)[0] = float("inf")
    torch.save({**broken, "step": 1}, run / "super_resolution" / "step_0000001.pt")
    with pytest.raises(Stop, match="not finite: nothing was written"):
        export.export(run, out)
    assert not out.exists()


def test_what_was_given_has_no_measure_in_the_table():
    full = dict.fromkeys(("sync", "shifted sync", "syllable errors", "attributes", "voice", "sharpness"), 0.5)
    for name in ("dub", "driving", "sound for video"):
        assert rows.ROWS[name].given
        row = {key: value for key, value in full.items() if key not in rows.ROWS[name].given}
        line = evaluate.table({name: row}).splitlines()[-1]
        assert line.count("| - |") + line.count("| - | -") >= 1 and line.count(" - ") == 2, line
    assert " - " not in evaluate.table({"data": full}).splitlines()[-1]


def test_given_parts_are_left_out_of_what_is_measured(monkeypatch):
    class Clips:
        """Two drawn clips in the place of those of a network."""

        def __init__(self, demo, seeds, *material):
            from training.clips import make_clip

            self.clips = [make_clip(seed, seconds=1) for seed in seeds]

    monkeypatch.setattr(evaluate, "Job", Clips)
    monkeypatch.setitem(rows.ROWS, "driving", rows.Row("x", rows.data, given=rows.SOUND))
    found = evaluate.evaluate(None, range(2), ["data", "driving"])
    assert set(found["data"]) - set(found["driving"]) == set(rows.SOUND)


RECIPE = """
RUN=x SEED=0 THREADS=1
source {stage}
stage data
echo never
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_recipe_reaches_its_stage_and_ends_both(number, tmp_path):
    """In the place of Python stands a program that says when it began and what it heard."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\n" + (
        "import pathlib, signal, sys, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "def heard(number, frame):\n"
        "    (folder / 'heard').write_text(str(number))\n"
        "    sys.exit(128 + number)\n"
        "for number in (signal.SIGTERM, signal.SIGINT):\n"
        "    signal.signal(number, heard)\n"
        "(folder / 'began').touch()\n"
        "time.sleep(60)\n"))  # fmt: skip
    program.chmod(0o755)
    script = tmp_path / "recipe.sh"
    script.write_text("set -euo pipefail\n" + RECIPE.format(stage=TRAINING / "stage.sh"))
    recipe = subprocess.Popen([BASH, script], env={**os.environ, "PYTHON": str(program)}, stdout=subprocess.PIPE,
                              text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    until = time.monotonic() + 20
    while not (tmp_path / "began").exists() and time.monotonic() < until:
        time.sleep(0.02)
    recipe.send_signal(number)
    out, _ = recipe.communicate(timeout=20)
    assert recipe.returncode == 128 + number and "never" not in out
    assert (tmp_path / "heard").read_text() == str(int(number))


def test_a_stage_that_fails_ends_the_recipe_with_its_status(tmp_path):
    script = tmp_path / "recipe.sh"
    script.write_text("set -euo pipefail\n" + RECIPE.format(stage=TRAINING / "stage.sh"))
    for program, status, goes_on in (("false", 1, False), ("true", 0, True)):
        done = subprocess.run([BASH, script], env={**os.environ, "PYTHON": program}, capture_output=True, text=True)
        assert done.returncode == status and ("never" in done.stdout) == goes_on


@pytest.mark.parametrize("recipe", ["run_demo.sh", "run_tiny.sh", "run_further.sh encoder", "run_further.sh networks",
                                    "run_further.sh decoders", "run_further.sh rest"])  # fmt: skip
def test_every_stage_of_a_recipe_takes_the_options_that_it_is_given(recipe, tmp_path, monkeypatch, capsys):
    """`echo` stands in the place of Python; the modules then read what it said, and one option that none has."""
    script, *part = recipe.split()
    done = subprocess.run([BASH, TRAINING / script, *part], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": "echo"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("-m training.") for line in done.stdout.splitlines() if line.startswith("-m training.")]
    assert lines
    for line in lines:
        assert call(monkeypatch, f"{line} --none-has-this", tmp_path) == 2
        assert capsys.readouterr().err.endswith("error: unrecognized arguments: --none-has-this\n"), line
    made = any(line.split()[0] == "latents" for line in lines)
    assert made == (part in ([], ["encoder"])), "networks and decoders both need them, and may run at one time"


def test_rows_of_a_network_that_is_not_there_are_named(tmp_path):
    from training.demo import Demo

    for part in ("text_encoder", "turbo_vae", "vae", "audio_vae", "base"):
        shutil.copytree(DEMO / part, tmp_path / part)
    with pytest.raises(Stop, match="holds no distilled network"):
        Demo(tmp_path).generate("words", 0)


def test_the_demo_is_left_alone_unless_it_is_asked_for(monkeypatch, tmp_path):
    code = call(monkeypatch, f"export --out {DEMO} --run {tmp_path}", tmp_path)
    assert "--overwrite-demo" in code


def test_a_damaged_file_of_scores_is_named(tmp_path, capsys):
    path = tmp_path / "scores.json"
    path.write_text("torn")
    with pytest.raises(Stop, match=r"scores.json is damaged"):
        evaluate.with_earlier_rows(path, {"weights": "a"}, {})
    path.unlink()
    evaluate.with_earlier_rows(path, {"weights": "a", "guidance": "5"}, {"base": {}})
    assert list(evaluate.with_earlier_rows(path, {"weights": "a", "guidance": "7"}, {"data": {}})) == ["data"]
    assert "other weights or guidance" in capsys.readouterr().out
    assert json.loads(path.read_text())["made with"]["guidance"] == "7"
