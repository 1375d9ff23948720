"""The campaign's quick form, and that its judge sees what is wrong."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from tqdm import tqdm

resource = pytest.importorskip("resource")  # not on Windows, where the campaign cannot fork either

from .campaign import KINDS, Count  # noqa: E402
from .judge import MEMORY, SECONDS, Case, judge  # noqa: E402
from .report import BEGIN, END, known_rows, table, write_report  # noqa: E402

ROOT = Path(__file__).parents[2]
CASES = 6


@pytest.mark.timeout(900)  # a minute and a half on a quiet core
def test_the_quick_form():
    """A process of its own, since it forks."""
    command = [sys.executable, "-m", "tests.campaign", "--minutes", "0", "--cases", str(CASES), "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, errors="replace",
                          env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    total = next(line for line in done.stdout.splitlines() if line.startswith("| all "))
    _, cases, done_well, refused, stopped, _, faults = [cell.strip() for cell in total.split("|")[2:9]]
    assert int(cases) == len(KINDS) * CASES and faults == "0"
    if "graphs" not in KINDS:
        warnings.warn(f"{done.stdout.splitlines()[0]}", stacklevel=1)
    alike = "a campaign in which all end alike shows nothing"
    assert min(int(done_well), int(refused)) > CASES, alike
    assert int(stopped) >= CASES // 2, alike  # how many depends on when signals strike, so on the machine


def written(path: Path, text: str, code: int, said: str = "magihuman: a.png: is damaged. Give another one.") -> int:
    path.write_text(text)
    print(said)
    return code


def busy() -> None:
    while time.process_time() < SECONDS + 0.5:
        pass


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "in.png").write_bytes(b"x")
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "in.png").write_bytes(b"x")
    return tmp_path / "case"


def too_much(path: Path) -> int:
    del path
    return written(Path(os.devnull), str(len(bytearray(MEMORY * 2))), 2)


FAULTS = {
    "an input that changes": lambda folder: written(folder / "in.png", "y", 2),
    "an input of many cases that changes": lambda folder: written(folder.parent / "media" / "in.png", "y", 2),
    "half an output": lambda folder: written(folder / "out.mp4", "y", 0),
    "half an output of what was refused": lambda folder: written(folder / "out.mp4", "y", 2),
    "a left-over": lambda folder: written(folder / ".x.part", "y", 2),
    "a file that nobody asked for": lambda folder: written(folder / "x.txt", "y", 2),
    "nothing written": lambda folder: 0,
    "no sentence": lambda folder: 2,
    "an internal error": lambda folder: 70,
    "a traceback": lambda folder: {}["x"],
    "a sentence that is none": lambda folder: print("magihuman: KeyError") or 2,
    "a signal": lambda folder: os.kill(os.getpid(), signal.SIGKILL),
    "too much memory": too_much,
    "too much time": lambda folder: written(Path(os.devnull), str(busy()), 2),
}


@pytest.mark.parametrize("what", FAULTS)
def test_the_judge_sees(what, folder):
    verdict = judge(Case(lambda: FAULTS[what](folder), folder, what, [folder / "out.mp4"]))
    assert verdict.kind == "fault" and verdict.why, verdict


def test_the_judge_lets_a_refusal_pass(folder):
    said = "magihuman: a.png: is damaged. Give another one."
    verdict = judge(Case(lambda: print(said) or 2, folder, "refused", [folder / "out.mp4"]))
    assert (verdict.kind, verdict.said) == ("refused", said)


def test_the_table_replaces_its_own_rows_alone(tmp_path):
    path = tmp_path / "reliability.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for counts in ({"cancels": Count(struck=2), "texts": Count()}, {"texts": Count(faults=["a fault"])}):
        write_report(path, counts, 1)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert table(known_rows(text)) in text and set(known_rows(text)) == {"cancels", "texts"} and "- `a fault`" in text


def test_a_process_killed_with_the_lock_of_a_progress_bar_in_hand_stops_no_other(tmp_path):
    def killed():
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    def draws_a_bar():
        with tqdm(total=1, file=sys.stderr):
            return 0

    tqdm.get_lock()  # made before, as by a bar of this process, it is that of all children
    assert judge(Case(killed, tmp_path, "killed", killed={signal.SIGKILL})).said == "killed"
    began = time.monotonic()
    judge(Case(draws_a_bar, tmp_path, "draws"))
    assert time.monotonic() - began < 20
