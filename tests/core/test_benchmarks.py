"""The benchmarks run, say what they found, and README's table of cards is the one that the estimates give."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import card, gpu_table, measure, paths, scale_table, speed
from benchmarks.gpu_table import target_of_card
from benchmarks.measure import Row, fill_randomly, table
from benchmarks.plot import bars
from magihuman_core.loading.fits import TAKEN, fit
from magihuman_core.loading.wishes import parse_wish
from magihuman_core.recipes import DISTILLED, SR_1080P
from magihuman_core.runtime.build import on_meta, one_of_each_kind
from magihuman_core.runtime.cards import find_card


def test_the_report_of_a_card_without_a_card(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert card.main(["--quick", "--out", str(tmp_path / "reports")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("No GPU was found") and "All checks passed" in said
    text = (tmp_path / "reports" / "card.md").read_text()
    assert "## MagiHuman on CPU" in text and text in said and "FAILED" not in text
    content = json.loads((tmp_path / "reports" / "card.json").read_text())
    checks = {row["what"]: row for row in content["checks"]}
    for name in ("recorded numbers, local_attn, bf16", "streamed from memory, against resident",
                 "fp8, streamed against resident", "attention by the plain kernel, fp32"):
        assert checks[name]["value"] <= checks[name]["limit"], name
    figures = [row for row in content["figures"] if row["value"] is not None]
    assert sum("step of" in row["what"] for row in figures) >= 3 and all(row["value"] > 0 for row in figures)
    assert any("Turbo VAE" in row["what"] for row in figures) and any("text encoder" in row["what"] for row in figures)


def test_a_wrong_path_fails_the_report(tmp_path, capsys, monkeypatch):
    right = torch.ones(2), torch.ones(3)
    checks = [paths.compare("close", lambda: (right[0], right[1] * 1.001), right, 1e-2),
              paths.compare("far", lambda: (right[0], right[1] * 1.1), right, 1e-2),
              paths.compare("broken", lambda: torch.ones(2) @ torch.ones(3), right, 1e-2),
              paths.compare("not there", lambda: torch.ones(2) @ torch.ones(3), right, 1e-2, may_lack=True)]
    assert [row.failed for row in checks] == [False, True, True, False]
    assert checks[3].value is None and "not available here" in checks[3].note
    monkeypatch.setattr(paths, "rows", lambda quick, device: checks)
    monkeypatch.setattr(speed, "rows", lambda *arguments: [Row("a step", 1.5, "s")])
    assert card.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "2 of 4 checks failed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        card.main(["--device", "no such device"])


def test_a_step_is_put_together_from_one_block_of_each_kind(monkeypatch):
    """Where whatever is timed takes one second: the step itself, and each block that stands for others once more."""
    def one_second(run, device):
        run()
        return 1.0

    monkeypatch.setattr(speed, "seconds", one_second)
    bench = speed.Bench(torch.device("cpu"), speed.SMALL, True, float("inf"))
    config, recipe = speed.SMALL.network, speed.SMALL.recipes[0]
    with torch.inference_mode():
        found = [bench._step(config, recipe, torch.float32, whole, False)[0] for whole in (True, False)]
    assert found == [1, 1 + config.layers - len(one_of_each_kind(config)[1])]


def test_what_would_take_too_long_is_left_out():
    rows = speed.rows(True, "cpu", minutes=0)
    assert {row.value for row in rows if "step" in row.what} == {None}
    assert all("left out" in row.note for row in rows if "step" in row.what)


def test_readme_has_the_table_that_the_estimates_give():
    text = gpu_table.README.read_text(encoding="utf-8")
    assert gpu_table.written(text) == text, "run python -m benchmarks.gpu_table --write"
    assert "Estimated" in text.split(gpu_table.BEGIN)[0][-400:]


def test_a_faster_or_larger_card_takes_less_time():
    wish, fast = parse_wish("picture 540p"), find_card("RTX 4090")
    small = replace(fast, memory=find_card("RTX 3060").memory, peak_link=fast.peak_link / 20)
    whole, part, slow = (fit(wish, target_of_card(card)) for card in (fast, small, find_card("RTX 3060")))
    assert whole.seconds < slow.seconds and 1.5 * whole.seconds < part.seconds  # as most comes in through a thin link
    assert whole.networks[1][1].streamed == 0 < part.networks[1][1].streamed
    assert part.networks[1][1].total < small.memory - TAKEN


def test_what_modules_share():
    times = measure.interleaved(lambda: sum(range(10)), lambda: sum(range(300_000)), repeats=3)
    assert times[0] < times[1]
    made = fill_randomly(on_meta(speed.SMALL.network, torch.float8_e4m3fn), "cpu")
    assert all(bool(p.float().isfinite().all()) and bool(p.float().any()) for p in made.parameters())
    assert made.adapter.rope.bands[0] == 1
    lines = table([Row("a", 1.2345, "s", "note"), Row("b", None, note="why"), Row("c", 2, limit=1)]).splitlines()
    assert lines[2:] == ["| a | 1.23 s | note |", "| b | - | why |", "| c | 2 **FAILED** |  |"]
    drawn = ElementTree.fromstring(bars([("one & two", 0.2, 0.4), ("three", 20, 5)], ("published", "estimated")))  # noqa: S314
    assert len([part for part in drawn.iter() if part.tag.endswith("rect")]) == 1 + 2 + 4


def test_the_page_on_scale_has_the_tables_that_the_estimates_give():
    text = scale_table.PAGE.read_text(encoding="utf-8")
    assert scale_table.written(text) == text, "run python -m benchmarks.scale_table --write"
    assert {name for _, name, _ in scale_table.BLOCK.findall(text)} == set(scale_table.TABLES)


def test_a_clip_on_several_cards():
    """One card takes what README's table says; more take less time each, and never less than their share."""
    for name in ("RTX 5090", "H100 80GB HBM3"):
        card = find_card(name)
        for wish in scale_table.WISHES.values():
            alone = fit(parse_wish(wish), target_of_card(card)).seconds
            times = [scale_table.clip_seconds(wish, card, ranks) for ranks in scale_table.RANKS]
            assert times[0] == pytest.approx(alone) and times == sorted(times, reverse=True)
            assert all(time > alone / ranks for time, ranks in zip(times[1:], scale_table.RANKS[1:], strict=True))
    step = scale_table.step_seconds(SR_1080P, find_card("RTX 5090"), 4, torch.bfloat16, fused=True)
    assert step == pytest.approx(scale_table.SHARED_STEPS[4][SR_1080P.role], rel=0.15)
    assert scale_table.step_seconds(DISTILLED, find_card("RTX 5090"), 8, streamed=10**12) == pytest.approx(
        1e12 / find_card("RTX 5090").link)
