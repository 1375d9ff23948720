"""README answers what a new user asks, soon; and every address, size and folder anywhere is that of the one list."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.published import DECODING, STEPS
from magihuman_core.loading.downloads import EIGHT_BITS, download, downloads, total_gb
from magihuman_core.loading.fits import MAIN_MEMORY, SECONDS, TAKEN, WHOLE
from magihuman_core.loading.wishes import parse_wish
from magihuman_core.model.config import RELEASED
from magihuman_core.recipes import BASE, DISTILLED, SR_540P, SR_1080P, UPSCALERS, upscaled_size
from magihuman_core.runtime.plan import plan_blocks
from magihuman_core.text.prompt import check_prompt

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORDS_A_MINUTE = 150  # of somebody who reads English as a second language
MINUTES = 2
# Question -> heading that answers it ("": the text before the contents), and words that the answer has.
QUESTIONS = {
    "what is it": ("", "make a person who speaks"),
    "is it tried": ("", "have not tried"),
    "what do I need": ("", "50 GB of free disk"),
    "will it run on my card": ("Will it run on my card", "Yes, if it is an NVIDIA card"),
    "what do I download for picture, voice, 540p": ("What to download", "GB in all"),
    "which variant for 16 GB": ("What to download", "on 12, 16 or 24 GB"),
    "where does each file go": ("What to download", "folder in `ComfyUI/models`"),
    "which workflow": ("Which template", "lip_sync_540p"),
    "which weight_dtype, and where": ("Settings", "`weight_dtype` stays at *default*"),
    "what prompt": ("The prompt", "Write three parts. This one is complete"),
    "how long": ("Will it run on my card", "| 16 GB ("),
    "a file is missing": ("When something goes wrong", "the file is missing"),
    "memory runs out": ("When something goes wrong", "memory runs out"),
    "upright": ("Upright clips", "512x896"),
    "where to ask or report": ("Ask or report", "Issues"),
    "how to update": ("Update", "git pull"),
}
# The limit on commercial use, and consent.
CONSENT = {"zh": ("商业", "同意"), "ja": ("商用", "同意"), "ko": ("상업", "동의")}
ADDRESS = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)(?:/tree/main/([\w./-]+)|/resolve/main/([\w./-]+))?")
TEXTS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "web/docs").glob("*.md"),
         *(ROOT / "example_workflows").glob("*.json"), *(ROOT / "locales").glob("*/*.json")]


def words(text: str) -> int:
    """What is read of a text: without addresses, marks and the insides of code blocks."""
    text = re.sub(r"```.*?```|<!--.*?-->|\]\([^)]*\)|https?://\S+|[|*`#_-]", " ", text, flags=re.DOTALL)
    return len(re.findall(r"\w+(?:['.]\w+)*", text))


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_is_found_within_two_minutes(question):
    heading, answer = QUESTIONS[question]
    first_screen, contents = README.split("\n## Contents\n")
    if not heading:
        read = first_screen.split(answer)
        assert len(read) > 1, answer
        assert words(read[0]) < MINUTES * WORDS_A_MINUTE
        return
    listed = contents.split("\n## ")[0].split(f"(#{anchor(heading)})")
    assert len(listed) > 1, f"the contents have no link to {heading}"
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    assert answer in section
    # The first screen, the contents down to the link, then the section down to the answer.
    total = words(first_screen) + words(listed[0]) + words(section.split(answer)[0])
    assert total < MINUTES * WORDS_A_MINUTE, f"{total} words to the answer"


def test_links_inside_lead_somewhere():
    headings = {anchor(heading) for heading in re.findall(r"^#+ (.+)$", README, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", README)) <= headings
    for name in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        if name != "docs/performance.md" or (ROOT / name).exists():  # which a benchmark writes
            assert (ROOT / name).exists(), name


def test_the_tables_are_those_of_the_list():
    done = subprocess.run([sys.executable, str(ROOT / "docs/write_downloads.py"), "--check"], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_address_and_size_is_of_the_list(path):
    text = path.read_text(encoding="utf-8")
    known = {entry.repository: [] for entry in downloads()}
    files = {file["url"].split("/resolve/main/")[1] for entry in downloads() for file in entry.files}
    for entry in downloads():
        known[entry.repository].append(entry.path.rpartition("/")[0])
    for repository, folder, file in ADDRESS.findall(text):
        assert repository in known, repository
        assert not folder or folder in known[repository], folder
        assert not file or file in files, file
    assert "GiB" not in text, "sizes are given in GB"


def test_folders_and_sizes_of_notes_are_those_of_the_list():
    """A line of a note that names a page of the list says its size and folder."""
    rows = 0
    for path in (ROOT / "example_workflows").glob("*.json"):
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            for entry in node.get("properties", {}).get("models", ()):
                assert entry in [file for known in downloads() for file in known.files], entry
            if node["type"] != "MarkdownNote":
                continue
            for line in node["widgets_values"][0].splitlines():
                if (match := ADDRESS.search(line)) and line.startswith("- "):
                    rows += 1
                    assert any(known.address == match[0] and f"`{known.folder}/`" in line and known.size in line
                               for known in downloads()), line
    assert rows > 30


@pytest.mark.parametrize("language", ["ko", "zh", "ja"])
def test_other_languages_say_the_same(language):
    """Commands, names of files and folders, sizes, addresses and nodes of the short pages are those of README."""
    text = (ROOT / f"docs/README.{language}.md").read_text(encoding="utf-8")
    assert f"(docs/README.{language}.md)" in README.split("\n\n")[1]  # in its first lines
    blocks = re.findall(r"```sh\n.*?```", text, re.DOTALL)
    assert len(blocks) == 2 and all(block in README for block in blocks)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    names = re.findall(r"`([^`]+)`", prose)
    assert len(names) > 20 and [name for name in names if f"`{name}`" not in README] == []
    rows = [line for line in prose.splitlines() if ADDRESS.search(line)]
    entries = [download(part, EIGHT_BITS) for part in parse_wish("picture voice 540p").parts]
    assert f"{total_gb(entries)} GB" in prose and len(rows) == len(entries)
    for row, entry in zip(rows, entries, strict=True):
        assert f"({entry.address})" in row and f"| `{entry.folder}/` |" in row and f"{entry.gb:g} |" in row
        assert entry.whole_folder or f"| `{entry.what}` |" in row
    for link, heading in re.findall(r"\]\((?!https?:)([^)#]+)#?([\w-]*)\)", text):
        assert (ROOT / "docs" / link).exists() and (not heading or f"(#{heading})" in README), (link, heading)
    nodes = json.loads((ROOT / f"locales/{language}/nodeDefs.json").read_text(encoding="utf-8"))
    for node in ("MagiHumanTextEncoderLoader", "MagiHumanCheck", "MagiHumanPrompt"):
        assert f"*{nodes[node]['display_name']}*" in re.sub(r"\n *", "", text), node
    for fact in ("0.33", "RTX 30", "12 GB", "16 GB", "32 GB", "50 GB"):
        assert fact in text and fact in README, fact
    licence = text.split("\n## ")[-1]
    for word in ("Apache-2.0", "Gemma", "Stability AI", *CONSENT[language]):
        assert word in licence, word
    (makers,) = (line for line in text.splitlines() if line.startswith("- ") and "SanDiegoDude" in line)
    assert "DeepBeepMeep" in makers


@pytest.mark.skipif(sys.version_info < (3, 11) or os.name == "nt", reason="only there a ._pth file and links do this")
def test_commands_for_portable_comfyui_find_the_package(tmp_path):
    """Its Python has a ._pth file: it sees ComfyUI's folder, and not the folder that a command starts in."""
    nodes, python = tmp_path / "ComfyUI/custom_nodes/magihuman", tmp_path / "python_embeded/python.exe"
    nodes.mkdir(parents=True)
    python.parent.mkdir()
    for name in ("__init__.py", "magihuman_core", "benchmarks"):
        (nodes / name).symlink_to(ROOT / name)
    python.symlink_to(Path(sys._base_executable).resolve())
    here = [path for path in sys.path if path and Path(path).resolve() != ROOT]
    lines = "\n".join(["../ComfyUI", *here, ".", "import site"])
    for name in ("python.exe._pth", "python._pth"):
        (python.parent / name).write_text(lines)

    def run(command):
        return subprocess.run(command, shell=True, cwd=nodes, capture_output=True, text=True, check=False)  # noqa: S602

    commands = re.findall(r"^\.\.\\.*python\.exe .*$", README, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        command = re.sub(r" inspect .*", "", command.replace("\\", "/")) + " --help"
        done = run(command)
        assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
    done = run("../../../python_embeded/python.exe -m magihuman_core --help")
    assert "No module named magihuman_core" in done.stderr  # what a portable Python answers


def test_recordings_are_cut_where_the_text_says():
    limits = {path.stem: node["widgets_values"][1] for path in (ROOT / "example_workflows").glob("*.json")
              for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]
              if node["type"] == "MagiHumanDrivingAudio" and node["widgets_values"][0] == "from the sound"}
    long = limits.pop("long_speech")
    (usual,) = set(limits.values())
    assert f"up to {usual:g} s (`long_speech`: {long:g} s)" in README
    for path in (ROOT / "docs").glob("README.*.md"):
        text = path.read_text(encoding="utf-8")
        assert f"{usual:g} s" in text and f"{long:g} s" in text, path


def test_commands_for_folders_put_them_where_the_table_says():
    commands = re.findall(r'^hf download (\S+) --include "(\S+/)\*" --local-dir ComfyUI/models/(\S+)$', README,
                          re.MULTILINE)
    wanted = [download(part, EIGHT_BITS) for part in parse_wish("picture voice 540p").parts]
    assert sorted((repository, path, f"{folder}/{path}") for repository, path, folder in commands) == sorted(
        (entry.repository, entry.path, f"{entry.folder}/") for entry in wanted if entry.whole_folder and not entry.take)


def test_the_first_screen_tells_the_size_of_the_usual_download():
    entries = [download(part, EIGHT_BITS) for part in parse_wish("picture voice 540p").parts]
    assert round(total_gb(entries), -1) == 50 and "50 GB of free disk" in README


def test_figures_of_the_text_are_those_of_the_estimates():
    def kept(recipe, gigabytes):
        config = replace(RELEASED, **recipe.overrides(RELEASED.layers))
        return plan_blocks(config, (gigabytes << 30) - TAKEN, width=recipe.width, height=recipe.height, seconds=SECONDS)

    # Main memory: that of the largest part twice, as it is read and as it is kept. Originals are kept in bf16.
    small = max(entry.gb for entry in downloads() if entry.set == EIGHT_BITS)
    assert 2 * small < 32 and 2 * kept(SR_1080P, 1000).weights < 64e9
    assert "**Main memory:** 32 GB for files in 8 bits, 64 GB for the originals" in README and MAIN_MEMORY < 32e9
    assert "**Originals on a card of less than 40 GB**" in README and WHOLE == 40e9
    for recipe in (DISTILLED, SR_540P, SR_1080P):
        assert kept(recipe, 32).resident_blocks is not None and kept(recipe, 40).resident_blocks is None
    assert "8 GB are tight, but by our estimate\nenough" in README and "| does not fit" not in README
    assert f"{BASE.steps} steps instead of {DISTILLED.steps}" in README


def test_what_the_makers_report_is_what_is_kept_of_it():
    steps, decoding = STEPS["H100 80GB HBM3"], DECODING["H100 80GB HBM3"]
    first = DISTILLED.steps * steps[DISTILLED.role]
    sums = [first + (0 if recipe is DISTILLED else recipe.steps * steps[recipe.role]) + seconds
            for recipe, seconds in zip((DISTILLED, SR_540P, SR_1080P), decoding.values(), strict=True)]
    assert "on an H100: {:.0f} s for 448x256, {:.0f} s for 540p, {:.0f} s for 1080p".format(*sums) in README


def test_the_prompt_is_complete():
    blocks = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    (prompt,) = (block for block in blocks if "\nDialogue:\n" in block)
    assert check_prompt(prompt.replace("\n", " ").replace(" Dialogue: ", "\n\nDialogue:\n").replace(
        " Background Sound: ", "\n\nBackground Sound:\n")) == []


def test_sizes_of_other_shapes_are_what_is_made():
    section = README.split("\n## Upright clips\n")[1].split("\n## ")[0]
    table = {row[0].strip(): [tuple(map(int, cell.split("x"))) for cell in row[1:]] for line in section.splitlines()
             if line.startswith("| ") and "x" in line for row in [line.strip("| ").split("|")]}
    for name in UPSCALERS:
        assert table[name] == [upscaled_size(*size, name) for size in table["first pass"]]


def sentences(text: str) -> list[str]:
    """The sentences of a page's prose: without tables, headings, code and pictures."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    text = "\n".join(line for line in text.splitlines()
                     if not line.startswith(("|", "#")) and ADDRESS.search(line) is None)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n|\n(?=- |\d+\. )", text))
    return [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.!?:])\s+", paragraph)]


def test_sentences_are_short():
    notes = [node["widgets_values"][0] for path in (ROOT / "example_workflows").glob("*.json")
             for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"] == "MarkdownNote"]
    pages = [path.read_text(encoding="utf-8").split("\nMeasured on")[0] for folder in ("web/docs", "docs/guides")
             for path in (ROOT / folder).glob("*.md")]
    found = [sentence for text in (README, *notes, *pages) for sentence in sentences(text)
             if "ma me mi" not in sentence and " -> " not in sentence]  # lists of names
    assert len(found) > 700
    assert [sentence for sentence in found if len(re.findall(r"\w+", sentence)) > 28] == []
