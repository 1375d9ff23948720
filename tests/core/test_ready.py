"""What a wish needs, what a folder has of it, and what fits on a card; and the demo told apart from the real model."""

import re
import shutil
from pathlib import Path

import pytest

from magihuman_core import InputError, MagiHumanPipeline
from magihuman_core.cli import main
from magihuman_core.errors import CheckpointError
from magihuman_core.loading.downloads import download, downloads
from magihuman_core.loading.fits import fit, in_words, target_of
from magihuman_core.loading.folder import DEMO, PARTS, find_models
from magihuman_core.loading.ready import check
from magihuman_core.loading.wishes import look, parse_wish
from magihuman_core.pipeline.demo import unknown_words
from magihuman_core.recipes import DEMO_LARGE, DEMO_SECONDS, DEMO_SIDE, DEMO_SIZES, DISTILLED, SR_540P

ROOT = Path(__file__).parents[2]
CARD = (DEMO / "CARD.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("words", "parts", "template"), [
    ("text", "distilled text_encoder audio_vae turbo_vae", "text_to_clip"),
    ("picture voice 540p", "distilled sr_540p text_encoder audio_vae turbo_vae video_vae", "lip_sync_540p"),
    ("my photo, and a recording; upright 540p", "distilled sr_540p text_encoder audio_vae turbo_vae video_vae",
     "lip_sync_upright"),
    ("image at 1080p", "distilled sr_1080p text_encoder audio_vae turbo_vae video_vae", "picture_to_clip_1080p"),
    ("base", "base text_encoder audio_vae turbo_vae", "base_full_cfg"),
])
def test_words_of_a_wish(words, parts, template):
    wish = parse_wish(words)
    assert wish.parts == parts.split() and wish.template == template
    assert (ROOT / f"example_workflows/{template}.json").exists()


def test_without_a_card_it_is_said_where_one_is_named(monkeypatch):
    """The node MagiHuman Check shows the same lines, and has no such input."""
    monkeypatch.setattr("magihuman_core.loading.ready.target_of", lambda memory: None)
    lines, _ = check(parse_wish("text"), None)
    assert any(line.endswith("On the command line, --memory 16 plans for one of 16 GB.") for line in lines)


def test_words_that_are_not_known_are_put_right():
    with pytest.raises(InputError, match=r"'vioce'.*Did you mean voice"):
        parse_wish("picture vioce")
    with pytest.raises(InputError, match="Leave one of them out"):
        parse_wish("540p 1080p")


def test_every_part_is_in_the_list_in_folders_that_comfyui_has():
    for part in set(PARTS) - {"tokenizer"}:
        for kind in ("8 bits", "originals"):
            assert download(part, kind).folder.split("/")[0] in ("diffusion_models", "text_encoders", "vae")
    for entry in downloads():
        assert all(file["url"].startswith(f"{entry.site}/{entry.repository}/resolve/main/") for file in entry.files)
        assert entry.address.startswith(f"{entry.site}/{entry.repository}") and 0 < entry.gb < 100


def test_names_of_the_list_tell_their_roles():
    from magihuman_core.weights.roles import find_role

    for entry in downloads():
        if entry.folder.startswith("diffusion_models"):
            assert find_role(Path("/models/diffusion_models") / entry.choice, {}) == entry.part


def test_what_is_there_and_what_is_missing(random_models, tmp_path, capsys):
    models = tmp_path / "models"
    shutil.copytree(random_models, models)
    assert check(parse_wish("picture voice 540p"), models)[1]
    shutil.rmtree(models / "540p_sr")
    shutil.rmtree(models / "audio_vae")
    lines, complete = check(parse_wish("picture voice 540p"), models)
    text = "\n".join(lines)
    assert not complete
    needs = look(find_models(models), parse_wish("picture voice 540p").parts)
    missing = {need.part for need in needs if not need.found}
    assert missing == {"sr_540p", "audio_vae"}
    for part in missing:
        assert download(part, "8 bits").address in text and download(part, "8 bits").folder in text
    assert download("turbo_vae", "8 bits").address + "\n" not in text and str(models / "distill") in text
    (models / "text_encoder/tokenizer.json").unlink()
    assert "tokenizer.json in " + str(models / "text_encoder") in "\n".join(check(parse_wish("text"), models)[0])
    assert main(["inspect", str(models), "--for", "text"]) == 1
    assert main(["inspect", str(models), "--for", "picturr"]) == 2
    assert "Did you mean picture" in capsys.readouterr().err


@pytest.mark.parametrize(("gigabytes", "wish", "runs", "whole"), [(16, "picture 540p", True, False),
                                                                 (24, "picture 540p", True, True),
                                                                 (3, "1080p", False, False)])
def test_what_fits_on_a_card(gigabytes, wish, runs, whole):
    found = fit(parse_wish(wish), target_of(gigabytes))
    assert found.runs == runs
    assert (found.networks[0][1].resident_blocks is None) == whole
    last = list(in_words(found))[-1]
    assert ("It will run." in last) if runs else ("It will not run" in last and "without 1080p" in last)


def test_sizes_of_a_wish():
    wish = parse_wish("upright 540p")
    assert (wish.size(DISTILLED), wish.size(SR_540P)) == ((256, 448), (512, 896))
    assert parse_wish("540p").size(SR_540P) == (896, 512)


def test_the_demo_is_explained(capsys):
    assert main(["inspect", "demo"]) == 0
    assert "distilled" in capsys.readouterr().out


def test_the_demos_sizes_are_those_of_its_card():
    sizes = ", ".join(f"{width}x{height}" for width, height in DEMO_SIZES)
    assert f"Clips of {DEMO_SECONDS} to 6 s at {sizes}" in " ".join(CARD.split())
    assert f"super-resolution, {DEMO_SIDE}x{DEMO_SIDE} to {DEMO_LARGE}x{DEMO_LARGE}" in CARD


def test_words_of_the_demos_card_are_known_and_others_are_named():
    (example,) = re.findall(r"```text\n(.*?)```", CARD, re.DOTALL)
    tokenizer = DEMO / "text_encoder/tokenizer.json"
    assert unknown_words(tokenizer, example) == []
    assert unknown_words(tokenizer, example + " A green Dragon flies over a castle.") == ["dragon", "flies", "over",
                                                                                        "castle"]


def test_a_wish_that_the_demo_cannot_fulfil_is_told(tmp_path, photograph, capsys):
    out = tmp_path / "a.mp4"
    assert main(["generate", "--models", "demo", "--prompt", "A dragon says: ma so", "--image", str(photograph),
                 "--steps", "1", "--seconds", "0.4", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert f"{DEMO_SIDE}x{DEMO_SIDE}" in said.out
    assert "tip: The demo does not know these words, and passes them over: dragon." in said.err
    assert "the face of a photograph is not kept" in said.err


def test_demo_and_other_models_are_not_mixed(random_models):
    pipeline = MagiHumanPipeline.from_folder(random_models, parts={"text_encoder": DEMO / "text_encoder"}, device="cpu")
    with pytest.raises(CheckpointError, match="of different models, as the demo's and the real ones"):
        pipeline.generate("A woman says hello to the camera.", seconds=0.4, steps=1, width=64, height=32)


class StoppedError(Exception):
    """Ends a clip before anything is computed."""


def test_most_of_the_demos_time_is_expected_where_it_goes():
    class Planned:
        def plan(self, stages):
            self.shares = dict(stages)

        def begin(self, stage):
            raise StoppedError

        def __call__(self, stage, done, total):
            pass

    progress = Planned()
    with pytest.raises(StoppedError):
        MagiHumanPipeline.from_folder("demo", device="cpu").generate(
            "A happy woman says: ma so", seconds=DEMO_SECONDS, upscale="540p", progress=progress)
    assert 0.6 < progress.shares["picture decoder"] / sum(progress.shares.values()) < 0.9
