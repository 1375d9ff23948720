"""The benchmarks run, say what they found, and README's table of cards is the one that the estimates give."""

import json
import math
import multiprocessing
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import __main__ as page
from benchmarks import card, gpu_table, live, loading, machine, measure, paths, scale_table, speed
from benchmarks.blocks import BLOCK, written
from benchmarks.estimates import target_of_card
from benchmarks.measure import Row, attempt, command_line, fill_randomly, table
from benchmarks.plot import bars
from magihuman_core import InputError
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


RIGHT = torch.ones(2), torch.ones(3)


def broken(message: str):
    raise RuntimeError(message)


def test_a_wrong_path_fails_the_report(tmp_path, capsys, monkeypatch):
    checks = [paths.compare("close", lambda: (RIGHT[0], RIGHT[1] * 1.001), lambda: RIGHT, 1e-2),
              paths.compare("far", lambda: (RIGHT[0], RIGHT[1] * 1.1), lambda: RIGHT, 1e-2),
              paths.compare("broken", lambda: torch.ones(2) @ torch.ones(3), lambda: RIGHT, 1e-2),
              paths.compare("not finite", lambda: (RIGHT[0], RIGHT[1] * torch.nan), lambda: RIGHT, 1e-2),
              paths.compare("other shapes", lambda: (RIGHT[0], torch.ones(4)), lambda: RIGHT, 1e-2),
              paths.compare("nothing to compare with", lambda: RIGHT, lambda: broken(""), 1e-2)]
    assert [row.failed for row in checks] == [False, True, True, True, True, True]
    assert checks[2].note.startswith("RuntimeError: ") and "without a message" in checks[5].note
    monkeypatch.setattr(paths, "rows", lambda quick, device: checks)
    monkeypatch.setattr(speed, "rows", lambda *arguments: [Row("a step", 1.5, "s")])
    assert card.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "5 of 6 checks failed" in capsys.readouterr().out
    json.loads((tmp_path / "card.json").read_text(), parse_constant=broken)  # no NaN or Infinity, which others refuse
    with pytest.raises(SystemExit):
        card.main(["--device", "no such device"])


@pytest.mark.parametrize(("message", "failed"), [
    ("No available kernel. Aborting execution.", False), ("CUDA error: an illegal memory access", True),
    ("CUDA error: no kernel image is available for execution on the device", True), ("cuDNN error", True)])
def test_a_kernel_is_missing_only_where_pytorch_says_so(message, failed):
    kernel = torch.nn.attention.SDPBackend.FLASH_ATTENTION
    row = paths.compare("a kernel", lambda: broken(message), lambda: RIGHT, 1e-2, kernel)
    assert row.failed == failed and row.value is None and ("not available here" in row.note) != failed
    assert paths.compare("no choice", lambda: broken(message), lambda: RIGHT, 1e-2).failed


def test_pytorch_still_says_so():
    q = torch.ones(1, 1, 4, 64)
    row = paths.compare("cuDNN on a CPU", lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q),
                        lambda: RIGHT, 1e-2, torch.nn.attention.SDPBackend.CUDNN_ATTENTION)
    assert not row.failed and "not available here" in row.note


def test_one_error_fails_what_it_hit_and_the_rest_goes_on(tmp_path, capsys, monkeypatch):
    """A device that refuses fp8 late, decoders that end by an error, and one that has no memory for the text."""
    load_dit, decode, text = paths.load_dit, speed.Bench.decode, speed.Bench.text

    def loads(source, **options):
        return broken("no fp8") if options["dtype"] == torch.float8_e4m3fn else load_dit(source, **options)

    def decodes(self, config, recipe, part, dtype):
        if recipe is self.sizes.recipes[1]:
            broken("CUDA error: no kernel image is available")
        yield from decode(self, config, recipe, part, dtype)

    def without_memory(self):
        yield from text(self)
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(paths, "load_dit", loads)
    monkeypatch.setattr(paths, "BACKENDS", {})
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(speed.Bench, "decode", decodes)
    monkeypatch.setattr(speed.Bench, "text", without_memory)
    for module in (paths, speed):
        monkeypatch.setattr(module, "why_not", lambda device: "not tried here")
    assert card.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 1
    content = json.loads((tmp_path / "card.json").read_text())
    failed = [row["what"] for key in ("checks", "figures") for row in content[key] if row["error"]]
    assert failed == ["weights in fp8, against bf16", "fp8, streamed against resident", "Turbo VAE, 96x64"]
    said = (tmp_path / "card.md").read_text()
    assert "2 of " in said and "1 measurements ended by an error" in said and content["finished"]
    assert "| Turbo VAE, 128x96, 2.2 s |" in said and "| audio VAE, 2.2 s |" in said and "two clips at once" in said
    assert "| text encoder | - | OutOfMemoryError: no memory |" in said


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_was_measured_is_kept_however_it_ends(tmp_path, monkeypatch, end):
    def rows(*_):
        yield Row("a step", 1.5, "s")
        raise end

    monkeypatch.setattr(paths, "rows", lambda *_: [Row("a check", 0, limit=1)])
    monkeypatch.setattr(speed, "rows", rows)
    if end is KeyboardInterrupt:
        assert card.main(["--device", "cpu", "--out", str(tmp_path)]) == 130
    else:
        with pytest.raises(SystemExit):
            card.main(["--device", "cpu", "--out", str(tmp_path)])
    said = (tmp_path / "card.md").read_text()
    assert "Not finished" in said and "| a check | 0 |" in said and "| a step | 1.5 s |" in said
    assert "All checks passed" not in said


@pytest.mark.parametrize("out", ["file", "file/folder", "blocked"])
def test_where_the_report_cannot_go_is_told_before_anything_is_measured(tmp_path, monkeypatch, capsys, out):
    (tmp_path / "file").touch()
    (tmp_path / "blocked" / "card.json").mkdir(parents=True)
    monkeypatch.setattr(paths, "rows", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit) as ended:
        card.main(["--device", "cpu", "--out", str(tmp_path / out)])
    assert ended.value.code == 2 and str(tmp_path / out) in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["mps", "xpu", "cuda:1"])
def test_a_device_is_not_called_a_cpu(kind):
    """Also where its driver tells nothing, as on this machine."""
    facts = card.environment(torch.device(kind))
    assert facts["kind"] == kind[:4].rstrip(":") and "CPU" not in facts["device"]
    report = card.Report(None, facts, small=False)
    assert card.NO_GPU not in report.text() and "5 seconds of video" in report.text()
    assert facts["processor"] == card.environment(torch.device("cpu"))["processor"]


def test_any_device_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    for kind in ("cpu", "mps", "xpu:1", "cuda:1"):
        measure.seconds(lambda: None, torch.device(kind))
    assert list(map(str, waited)) == ["mps", "mps", "xpu:1", "xpu:1", "cuda:1", "cuda:1"]
    monkeypatch.setattr(card, "computes_bf16", lambda device: str(device) != "cuda:1")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: pytest.fail("asked of the wrong card"))
    assert card.environment(torch.device("cuda:1"))["bf16"] == "emulated"


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
    rows = list(speed.rows(True, "cpu", minutes=0))
    assert {row.value for row in rows if "step" in row.what} == {None}
    assert all("left out" in row.note for row in rows if "step" in row.what)


def test_readme_has_the_table_that_the_estimates_give():
    text = gpu_table.README.read_text(encoding="utf-8")
    assert written(text, gpu_table.tables()) == text, "run python -m benchmarks.gpu_table --write"
    assert "Estimated" in BLOCK.split(text)[0][-400:]


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
    lines = table([Row("a", 1.2345, "s", "note"), Row("b", None, note="why"), Row("c", 2, limit=1),
                   Row("d", None, note="x|y", error=True)]).splitlines()
    assert lines[2:] == ["| a | 1.23 s | note |", "| b | - | why |", "| c | 2 **FAILED** |  |",
                         "| d | - **FAILED** | x\\|y |"]
    drawn = ElementTree.fromstring(bars([("one & two", 0.2, 0.4), ("three", 20, 5)], ("published", "estimated")))  # noqa: S314
    assert len([part for part in drawn.iter() if part.tag.endswith("rect")]) == 1 + 2 + 4


def test_the_page_on_scale_has_the_tables_that_the_estimates_give():
    text = scale_table.PAGE.read_text(encoding="utf-8")
    assert written(text, scale_table.tables()) == text, "run python -m benchmarks.scale_table --write"


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


def test_the_page_on_performance_has_the_estimates_of_today():
    text = page.PAGE.read_text(encoding="utf-8")
    there = dict(re.findall(r"--write: (\w+) -->\n(.*?)<!-- end -->", text, re.DOTALL))
    today = {"estimated": "\n".join(page.estimated()), "published": "\n".join(page.published())}
    assert written(text, there | today) == text, "run python -m benchmarks --write"
    assert set(there) == {"machine", "estimated", "published", *page.MODULES}
    for what, _, seconds in page.compared():  # steps are compared fused, decoding plain, as the heading says
        stage, card_name = page.stages(), what.split(", ")[0]
        found = next(found for name, found in stage if what.split(", ")[1].removeprefix("decoding ") in name and (
            "Turbo" in name) == ("decoding" in what))
        assert seconds == found.seconds(find_card(card_name), fused="decoding" not in what)


BLOCKS = "\n".join(f"<!-- python -m benchmarks --write: {name} -->\nold\n<!-- end -->" for name in (
    "machine", "precision", "estimated", "published"))


def test_the_page_is_written_around_remarks_and_never_with_failures(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(page, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(page, "MODULES", ("precision",))
    page.PAGE.write_text(f"By hand.\n{BLOCKS}\nBy hand, too.\n")
    assert page.main(["--write"]) == 0
    text = page.PAGE.read_text()
    assert text.startswith("By hand.\n") and text.endswith("By hand, too.\n") and "old" not in text
    assert "error of video, weights in int8" in text and machine.processor() in text
    assert page.PAGE.with_suffix(".svg").is_file()

    monkeypatch.setattr(page, "MODULES", ("no_such_module",))
    before = text.replace("write: precision", "write: no_such_module")
    page.PAGE.write_text(before)
    assert page.main(["--write"]) == 1
    assert page.PAGE.read_text() == before and "Failed: no_such_module" in capfd.readouterr().err
    page.PAGE.write_text("no marks")
    with pytest.raises(SystemExit):
        page.main(["--write"])


def test_marks_that_are_not_those_of_the_tables_are_named():
    for text in ("", BLOCKS, BLOCKS + BLOCKS):
        with pytest.raises(InputError, match="expected machine, precision, each once"):
            written(text, {"machine": "a", "precision": "b"})


def test_a_module_says_what_it_measured_however_it_ends(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark", "--quick"])

    def rows(quick, end):
        yield Row("first", 1, "s")
        if end is not None:
            raise end

    for end, code in ((None, 0), (KeyboardInterrupt(), 130), (InputError("This is wrong."), 1)):
        assert measure.main(lambda quick, end=end: rows(quick, end), command_line("")) == code
        said = capsys.readouterr()
        assert "| first | 1 s |" in said.out and ("This is wrong." in said.err) == (code == 1)
    assert measure.main(lambda quick: attempt("all", lambda: rows(quick, ValueError("no"))), command_line("")) == 1
    assert "| all | - **FAILED** | ValueError: no |" in capsys.readouterr().out


def test_what_was_freed_before_does_not_hide_a_peak():
    """Blocks too small for maps of their own stay with the process after they were freed."""
    if measure.resident("VmHWM") is None:
        pytest.skip("this system does not tell")
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        peak = pool.apply(peak_after_freeing)
    assert 0.97 * PIECES * PIECE < peak < 1.3 * PIECES * PIECE


PIECE, PIECES = 100_000, 1000  # bytes, and how many


def peak_after_freeing() -> int | None:
    kept = [b"x" * PIECE for _ in range(PIECES)]
    last = b"x" * PIECE  # above them, so that the heap cannot shrink by itself
    kept.clear()
    return measure.peak_resident(lambda: kept.extend(b"x" * PIECE for _ in range(PIECES + 0 * len(last))))


def test_peaks_of_loading_are_not_below_what_is_loaded(monkeypatch):
    if measure.resident("VmHWM") is None:
        pytest.skip("this system does not tell")
    sizes = [loading.config(heads) for heads in (loading.WARM_UP_HEADS, loading.QUICK_HEADS, loading.HEADS)]
    assert [size.hidden for size in sizes] == [128, 512, 1536]
    monkeypatch.setattr(loading, "WAYS", {"ours, fp8": loading.ours_fp8})  # the one whose warm-up frees most
    least = math.inf  # of a few runs: what the C library keeps for later makes some peaks higher, and none lower
    for _ in range(5):
        (row,) = loading.rows(quick=True)
        assert row.what == "ours, fp8: peak / loaded" and row.value >= 1
        least = min(least, row.value)
        if least < 1.5:
            break
    assert least < 1.5


def test_a_way_of_loading_that_ends_early_is_told(monkeypatch):
    """It waited for an answer for ever."""
    monkeypatch.setattr(loading, "WAYS", {"no such way": None})
    monkeypatch.setattr(loading, "QUICK_HEADS", loading.WARM_UP_HEADS)
    with pytest.raises(KeyError, match="no such way"):
        list(loading.rows(quick=True))


def test_a_live_command_that_ends_early_says_why(monkeypatch):
    """With the last lines of its log."""
    monkeypatch.setattr(live, "DEMO", "no such folder")
    with pytest.raises(RuntimeError, match=r"(?s)ended with 2: .*no such folder"):
        live.Stream(1.0, as_spoken=False)
