"""The training recipe: its loop and guards in small, and once all of it with a few steps of everything."""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from training import (
    checkpoints,
    common,
    data,
    evaluate,
    export,
    files,
    fit,
    latents,
    masks,
    train_network,
    train_video_vae,
)
from training import options as options_module
from training.common import RowWriter, Stop, read_rows
from training.fast_conv import operations as fast
from training.muon import Optimizers, Together

REPOSITORY = Path(__file__).parents[2]


class Numbers:
    """A source of random numbers in the place of clips."""

    def __init__(self, seed=0):
        self.random = np.random.default_rng(seed)


def options(steps, **more):
    return SimpleNamespace(**{"steps": steps, "rate": 1e-2, "batch": 4, "seed": 0, "minutes": None, "save_every": 4,
                              **more})  # fmt: skip


class Small:
    """A tiny stage: `run` trains it. break_at: the step that the stage's `fault` acts at."""

    def __init__(self, folder, fault=None, break_at=None):
        torch.manual_seed(0)
        self.folder = folder
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))
        self.fault, self.break_at = fault, break_at

    def loss(self, source, step):
        x = torch.from_numpy(source.random.standard_normal((4, 3, 8, 8)).astype(np.float32))
        loss = (self.net(x + 0.1 * torch.randn_like(x)) - x.roll(1, -1)).square().mean()
        if step + 1 == self.break_at and isinstance(source, Numbers):
            loss = self.fault(self.net, loss)
        return loss, {"loss": loss.detach()}

    def run(self, steps, config=None, held_out=None, **more):
        optimizer = Optimizers(self.net, 1e-2, 0.0)
        return fit.fit(self.folder, self.net, optimizer, self.loss, Numbers(), options(steps, **more),
                       config=config or {"clips": 4}, held_out=held_out or Numbers(1),
                       sample=lambda net: [np.zeros((2, 4, 4, 3), np.uint8)])  # fmt: skip


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def states(*folders):
    """The newest checkpoints without what the clock says."""
    return [{key: value for key, value in checkpoints.load(folder).items() if key != "seconds"} for folder in folders]


def test_a_run_in_pieces_is_the_run_in_one_piece_bit_for_bit(tmp_path, capsys):
    Small(tmp_path / "whole").run(10)

    def stop(net, loss):
        os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with pytest.raises(SystemExit) as end:
        Small(tmp_path / "parts", stop, break_at=6).run(10)
    assert end.value.code == 128 + signal.SIGTERM
    assert checkpoints.load(tmp_path / "parts")["step"] == 6
    Small(tmp_path / "parts").run(10)
    whole, parts = states(tmp_path / "whole", tmp_path / "parts")
    assert same(whole, parts)
    assert "goes on from step 6" in capsys.readouterr().out
    other = Small(tmp_path / "other")
    other.run(10, seed=1)
    assert not same(whole["modules"], checkpoints.load(tmp_path / "other")["modules"])


def test_logs_curves_and_sheets_are_there_and_follow_the_steps(tmp_path, capsys):
    Small(tmp_path / "small").run(6)
    Small(tmp_path / "small").run(10)  # another length of the schedule is said, and allowed
    assert "steps was 6, now 10" in capsys.readouterr().out
    rows = read_rows(tmp_path / "small" / "log.jsonl")
    assert [row["step"] for row in rows] == [4, 6, 8, 10]
    assert {"loss", "norm", "rate", "seconds", "held-out loss"} <= rows[0].keys()
    assert (tmp_path / "small" / "curves.png").exists()
    assert len(list((tmp_path / "small" / "samples").iterdir())) == 4
    Small(tmp_path / "small").run(10)
    assert "raise --steps" in capsys.readouterr().out
    (tmp_path / "small" / "step_0000010.pt").unlink()  # from the checkpoint before; its lines are made again
    Small(tmp_path / "small").run(10)
    assert [row["step"] for row in read_rows(tmp_path / "small" / "log.jsonl")] == [4, 6, 8, 10]


def test_two_do_not_train_in_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    Small(tmp_path / "small").run(4)
    log = (tmp_path / "small" / "log.jsonl").read_text()
    with common.alone(tmp_path / "small"), pytest.raises(Stop, match="Another process is writing into"):
        Small(tmp_path / "small").run(8)
    assert (tmp_path / "small" / "log.jsonl").read_text() == log and checkpoints.load(tmp_path / "small")["step"] == 4


def test_minutes_stop_a_run_which_says_so(tmp_path, capsys):
    Small(tmp_path / "small").run(10, minutes=1e-9)
    assert "--minutes" in capsys.readouterr().out
    assert checkpoints.load(tmp_path / "small")["step"] == 1


def break_loss(net, loss):
    return loss * float("nan")


def break_gradient(net, loss):
    return loss + (net[0].weight - net[0].weight.detach()).abs().sqrt().sum()  # infinite slope at 0


def break_weights(net, loss):
    net[0].bias.data[0] = float("inf")  # the step after would notice by its loss
    return loss


@pytest.mark.parametrize(("fault", "sentence"), [(break_loss, "the loss is not finite"),
                                                 (break_gradient, "the gradients are not finite")])  # fmt: skip
def test_what_is_not_a_number_stops_the_run_and_the_last_good_checkpoint_stays(tmp_path, fault, sentence):
    small = Small(tmp_path / "small", fault, break_at=7)
    with pytest.raises(Stop, match=sentence) as stop:
        small.run(10)
    assert "Step 7 of small" in stop.value.code and "step_0000004.pt" in stop.value.code
    assert [p.name for p in checkpoints.checkpoints_in(tmp_path / "small")] == ["step_0000004.pt"]


class Unmoved(Numbers):
    """A source whose loss is that of no network at all: what is wrong with a network does not show in it."""


def test_a_broken_weight_is_noticed_before_it_is_saved(tmp_path):
    small = Small(tmp_path / "small", break_weights, break_at=8)
    plain = small.loss
    small.loss = lambda source, step: (None, {}) if isinstance(source, Unmoved) else plain(source, step)
    with pytest.raises(Stop, match="weights or optimizer are not finite") as stop:
        small.run(10, held_out=Unmoved())
    assert "step_0000004.pt" in stop.value.code
    assert [p.name for p in checkpoints.checkpoints_in(tmp_path / "small")] == ["step_0000004.pt"]


def test_held_out_losses_that_are_not_finite_stop_the_run_before_it_is_saved(tmp_path):
    with pytest.raises(Stop, match="Step 8 of small: held-out loss not finite") as stop:
        Small(tmp_path / "small", break_weights, break_at=8).run(10)
    assert "step_0000004.pt" in stop.value.code
    assert [p.name for p in checkpoints.checkpoints_in(tmp_path / "small")] == ["step_0000004.pt"]


def test_after_a_fault_a_run_goes_on_with_another_rate_or_seed_as_the_message_says(tmp_path, capsys):
    with pytest.raises(Stop, match="lower --rate or another --seed"):
        Small(tmp_path / "small", break_loss, break_at=7).run(10)
    with pytest.raises(Stop, match="The same command would come to the same step"):
        Small(tmp_path / "small", break_loss, break_at=7).run(10)
    Small(tmp_path / "small").run(6, rate=1e-3)
    assert "rate was 0.01, now 0.001" in capsys.readouterr().out
    Small(tmp_path / "other").run(6)
    noise = {}
    for name, seed in (("small", 5), ("other", 0)):
        Small(tmp_path / name).run(10, rate=1e-3, seed=seed)
        noise[name] = checkpoints.load(tmp_path / name)["random"]["torch"]
    assert "seed was 0, now 5" in capsys.readouterr().out
    assert not torch.equal(noise["small"], noise["other"]), "another seed is another noise, from there on"


def test_held_out_numbers_are_means_of_the_batches_that_have_them_and_do_not_depend_on_the_step():
    steps = []

    def loss(source, step):
        steps.append(step)
        return None, {"driven": 3.0} if len(steps) % 4 == 1 else {"held": float(source.random.random() < 2)}

    assert fit.validate(loss, Numbers()) == fit.validate(loss, Numbers()) == {"driven": 3.0, "held": 1.0}
    assert steps[:4] == steps[4:] and min(steps) > 10**6


def test_noise_is_drawn_from_the_generator_that_checkpoints_hold_whatever_the_device():
    states = []
    for name in ("cpu", "meta"):
        torch.manual_seed(0)
        video, audio = torch.zeros(2, 3, 2, 4, 4, device=name), torch.zeros(2, 5, 7, device=name)
        keep = masks.Keep(*(torch.zeros(shape, dtype=torch.bool, device=name)
                            for shape in ((2, 1, 2, 4, 4), (2, 1, 7), (2, 1, 1, 1, 1))))  # fmt: skip
        parts = masks.noised(video, audio, torch.full((2, 1, 1, 1, 1), 0.5, device=name), keep)
        assert {part.device.type for part in parts} == {name}
        states.append(torch.get_rng_state())
    assert torch.equal(*states) and not torch.equal(states[0], torch.Generator().manual_seed(0).get_state())


def test_pictures_are_brought_to_the_cpu_from_any_device():
    assert train_video_vae.to_images(torch.zeros(1, 3, 5, 2, 2)).shape == (3, 2, 2, 3)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # there is nothing to bring
        train_video_vae.to_images(torch.zeros(1, 3, 5, 2, 2, device="meta"))


def test_weights_that_are_not_finite_are_neither_saved_nor_exported(tmp_path):
    good = {"modules": {"w": torch.ones(2)}, "step": 1}
    for step in range(1, 6):
        checkpoints.save(tmp_path, {**good, "step": step})
    assert [p.stem for p in checkpoints.checkpoints_in(tmp_path)] == [f"step_000000{n}" for n in (3, 4, 5)]
    with pytest.raises(Stop, match="not finite"):
        checkpoints.save(tmp_path, {"modules": {"w": torch.tensor([1.0, float("inf")])}, "step": 6})
    assert checkpoints.load(tmp_path)["step"] == 5
    with pytest.raises(Stop, match=r"w of x.safetensors is not finite"):
        files.write(tmp_path / "x.safetensors", {"w": torch.tensor([float("nan")])})
    assert not (tmp_path / "x.safetensors").exists()


def test_a_torn_checkpoint_is_named(tmp_path):
    checkpoints.save(tmp_path, {"step": 1})
    (tmp_path / "step_0000002.pt").write_bytes(b"PK torn")
    with pytest.raises(Stop, match=r"step_0000002.pt cannot be read"):
        checkpoints.load(tmp_path)


def test_a_run_does_not_go_on_under_another_configuration(tmp_path, capsys):
    Small(tmp_path / "small").run(4)
    with pytest.raises(Stop, match=r"batch was 4, now 8; clips was 4, now 5"):
        Small(tmp_path / "small").run(8, config={"clips": 5}, batch=8)
    Small(tmp_path / "small").run(8, config={"clips": 4, "teacher": "t"})
    assert "small: teacher was not recorded, now t" in capsys.readouterr().out
    with pytest.raises(Stop, match="teacher was t, now u"):
        Small(tmp_path / "small").run(12, config={"clips": 4, "teacher": "u"})


def test_a_second_interrupt_ends_at_once():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs us in the background ignores it
    with fit.Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.caught == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_exported_bytes_do_not_depend_on_the_order_of_anything(tmp_path):
    from safetensors import safe_open

    tensors = {"b": torch.arange(4.0), "a": torch.ones(3, dtype=torch.int8)}
    for k in range(6):
        files.write(tmp_path / f"{k}.safetensors", dict(sorted(tensors.items(), reverse=k % 2)), x="1", y="2", z="3")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("b"), tensors["b"])
        assert file.metadata()["z"] == "3"


def test_shipped_weights_are_not_overwritten_by_accident():
    with pytest.raises(Stop, match="--overwrite-demo"):
        files.refuse_demo(files.DEMO, False)
    files.refuse_demo(files.DEMO, True)


def test_a_stage_whose_data_or_forerunner_is_missing_says_what_to_run(tmp_path):
    with pytest.raises(Stop, match=r"run python -m training.train_video_vae --run"):
        train_video_vae.load_trained(tmp_path)
    with pytest.raises(Stop, match=r"run python -m training.train_network base"):
        train_network.load_base(tmp_path)
    with pytest.raises(Stop, match="does not exist"):
        data.Clips(tmp_path / "clips")
    with pytest.raises(Stop, match="holds no latents"):
        latents.Latents(tmp_path / "clips")


def test_clips_go_on_after_a_torn_line_and_refuse_another_shape(tmp_path):
    folder, short = tmp_path / "clips" / "square_1s", data.ClipSet("square_1s")
    data.draw_clips(folder, 3, short)
    rows = read_rows(folder / "meta.jsonl")
    lines = (folder / "meta.jsonl").read_text()
    (folder / "meta.jsonl").write_text(lines[:-20])
    with pytest.raises(Stop, match="2 of 3 clips"):
        data.Clips(folder)
    data.draw_clips(folder, 3, short)
    assert read_rows(folder / "meta.jsonl") == rows
    assert len(data.Clips(folder)) == 3
    for count, other in ((4, short), (3, data.ClipSet("portrait_1s")), (3, data.ClipSet("square_1s", 2))):
        with pytest.raises(Stop, match="give the same --count"):
            data.draw_clips(folder, count, other)
    with pytest.raises(Stop, match="begins with seed 100000, not 7"):
        data.draw_clips(folder, 3, short, first_seed=7)
    for name in ("round_2s", "square", "square_xs", "square_2", "square_0s", "square_-1s"):
        with pytest.raises(Stop, match=f"{name} is no set of clips"):
            data.ClipSet(name)
    (folder / "meta.jsonl").write_text("torn\n")
    with pytest.raises(Stop, match="damaged"):
        read_rows(folder / "meta.jsonl")


def test_rows_are_appended_after_the_last_whole_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    with RowWriter(path) as writer:
        writer.write({"a": 2})
    assert read_rows(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("takes", [1, 2])
@pytest.mark.parametrize("count", [3, 4, 24, 59, 384, 1600])
def test_some_clips_are_held_out_with_all_takes_of_their_scenes(count, takes):
    trained, held = (set(data.split(range(count), part, takes).tolist()) for part in (False, True))
    assert trained and held and not trained & held
    assert len(trained) + len(held) == count
    assert not {number // takes for number in trained} & {number // takes for number in held}
    with pytest.raises(Stop, match=f"{takes + 1} are the least"):
        data.split(range(takes), False, takes)


def test_decoders_of_another_encoder_are_not_used(tmp_path, capsys):
    checkpoints.save(tmp_path / "turbo", {"step": 1, "config": {"encoder": "old"}})
    assert checkpoints.load_further(tmp_path, "turbo", "new") is None
    assert "another encoder" in capsys.readouterr().out
    assert checkpoints.load_further(tmp_path, "turbo", "old")["step"] == 1
    latents.claim(tmp_path, {"video": "a", "audio": "b"})
    latents.claim(tmp_path, {"video": "a", "audio": "b"})
    with pytest.raises(Stop, match="were made with encoders"):
        latents.claim(tmp_path, {"video": "c", "audio": "b"})
    config = {"latents": {"video": "a", "audio": "b"}}
    checkpoints.check_origins(tmp_path / "base", config, config)
    with pytest.raises(Stop, match="delete its folder and train it again"):
        checkpoints.check_origins(tmp_path / "base", config, {"latents": {"video": "c", "audio": "b"}})
    checkpoints.check_origins(tmp_path / "base", config, {"teacher": "t"})  # of an older version, which did not say
    assert "base: which teacher it was trained with is not recorded" in capsys.readouterr().out


def test_rows_of_other_weights_leave_the_card(tmp_path):
    path = tmp_path / "scores.json"
    row = {"sync": 1.0}
    evaluate.with_earlier_rows(path, {"weights": "one"}, {"base": row})
    assert list(evaluate.with_earlier_rows(path, {"weights": "one"}, {"data": row})) == ["data", "base"]
    assert list(evaluate.with_earlier_rows(path, {"weights": "two"}, {"sr": row})) == ["sr"]
    for text in ("first", "second"):
        evaluate.write_card(tmp_path / "CARD.md", "stamp", text)
    card = (tmp_path / "CARD.md").read_text()
    assert "second" in card and "first" not in card
    (tmp_path / "CARD.md").write_text("Words, and no marks.")
    with pytest.raises(Stop, match=r"CARD.md has no <!-- scores -->"):
        evaluate.write_card(tmp_path / "CARD.md", "stamp", "third")
    assert (tmp_path / "CARD.md").read_text() == "Words, and no marks."


@pytest.mark.parametrize(("height", "width"), [(6, 10), (10, 6), (8, 8), (16, 16)])
def test_the_mouth_weighs_more_in_every_shape(height, width):
    weight = masks.mouth_weight(torch.zeros(1, 48, 2, height, width))[0, 0, 0]
    share = float((weight > 1).float().mean())
    assert share == pytest.approx(3 * 4 / 64, rel=0.35)
    rows = torch.nonzero(weight > 1)[:, 0].float()
    assert float(rows.mean()) / height == pytest.approx(5 / 8, abs=0.1)


def test_several_optimizers_act_as_one():
    net = nn.Linear(2, 2)
    together = Together(torch.optim.SGD([net.weight], 1.0), torch.optim.SGD([net.bias], 1.0))
    before = [p.detach().clone() for p in net.parameters()]
    net(torch.ones(1, 2)).sum().backward()
    together.step(0.5)
    for parameter, old in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.5)
        assert parameter.grad is None


def test_weight_gradients_of_convolutions_over_time_in_bf16():
    """With AMX those of torch.nn.Conv3d are wrong at this shape, which the Turbo decoder has in training."""
    torch.manual_seed(0)
    layer = fast.Conv3d(32, 32, 3, padding=(0, 1, 1))
    x = torch.randn(2, 32, 7, 64, 64)
    wanted = torch.randn(2, 32, 5, 64, 64)
    found = []
    for enabled in (False, common.has_amx()):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(x)
        y.backward(wanted.to(y.dtype))
        found.append(layer.weight.grad.flatten())
        layer.weight.grad = None
    assert nn.functional.cosine_similarity(*found, dim=0) > 0.999


def test_both_video_networks_use_these_convolutions():
    networks = train_video_vae.build()
    over_time = [m for network in networks for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert len(over_time) > 20 and all(isinstance(m, fast.Conv3d) and m.groups == 1 for m in over_time)


def test_bf16_only_with_amx(monkeypatch):
    for answer in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda answer=answer: answer, raising=False)
        assert common.autocast()._enabled is answer


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_recipe_from_nothing_to_a_clip(tmp_path):
    """Every stage with a few steps: drawing, autoencoders, latents, networks, files, scores; then a clip from them."""
    from magihuman_core import MagiHumanPipeline

    run = tmp_path / "run"
    environment = {**os.environ, "RUN": str(run), "PYTHON": sys.executable, "THREADS": "1"}
    command = ["bash", str(REPOSITORY / "training" / "run_tiny.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for stage in ("video_vae", "audio_vae", "text", "base", "distilled", "driven", "super_resolution", "turbo",
                  "audio_decoder", "wan_decoder"):  # fmt: skip
        assert read_rows(run / stage / "log.jsonl")
        assert (run / stage / "curves.png").exists()
        assert (run / stage / "samples").exists() == (stage not in ("audio_vae", "text", "audio_decoder"))
        assert checkpoints.all_finite(checkpoints.load(run / stage))
    assert "the same through both autoencoders" in (run / "export" / "CARD.md").read_text()

    pipeline = MagiHumanPipeline.from_folder(run / "export")
    clip = pipeline.generate('A happy child says: "ma so"', seconds=1, width=64, height=64, upscale=(128, 128))
    assert clip.frames.shape[1:] == (128, 128, 3)
    assert clip.audio.isfinite().all()
    assert json.loads((run / "clips" / "square_2s" / "encoders.json").read_text()).keys() == {"video", "audio"}
    again = tmp_path / "again"
    export.export(run, again)
    for path in again.rglob("*.safetensors"):
        assert path.read_bytes() == (run / "export" / path.relative_to(again)).read_bytes(), path.name


def test_options_take_names_and_paths():
    parser = argparse.ArgumentParser()
    options_module.add_options(parser, steps=5, rate=1.0, batch=2)
    assert parser.parse_args([]).run == options_module.RUNS / "demo"
    assert parser.parse_args(["--run", "/x/y"]).run == Path("/x/y")
