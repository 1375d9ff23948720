"""The real front end in a headless Chromium: workflows load whole, and the demo runs by its button.

Needed are chromium (or CHROMIUM), node, and playwright-core: its folder in PLAYWRIGHT_CORE, or found by npm.
The page is that of comfyui-frontend-package in the tests' environment (pip install ".[browser]"), so that its version
is known; without it, that of ComfyUI's environment. The version stands at the end of the tests' output.
MAGIHUMAN_SCREENSHOTS keeps the screenshots in that folder.
"""

import json
import os
import shutil
import subprocess
import warnings
from importlib.metadata import version
from pathlib import Path

import av
import pytest
from base import make_base
from server import Server, find_python, front_end_flags
from test_example_workflows import WORKFLOWS
from ui_graph import to_api, widget_values

HERE = Path(__file__).resolve().parent
PACK = "magihuman"  # the folder's name below custom_nodes, as conftest.py links it
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_playwright() -> str | None:
    """The folder of playwright-core."""
    places = [Path(os.environ["PLAYWRIGHT_CORE"])] if "PLAYWRIGHT_CORE" in os.environ else []
    npm = shutil.which("npm")
    for arguments in (["root"], ["root", "-g"]) if npm else ():
        done = subprocess.run([npm, *arguments], capture_output=True, text=True, check=False, cwd=HERE)
        places.append(Path(done.stdout.strip()) / "playwright-core")
    places.append(Path.home() / "comfy/browser/node_modules/playwright-core")
    return next((str(place) for place in places if (place / "package.json").is_file()), None)


@pytest.fixture(scope="module")
def browse(server):
    """browse(job) -> the answer of browser.cjs."""
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    programs = {"chromium": chromium, "node": shutil.which("node"), "playwright-core": find_playwright()}
    missing = [name for name, found in programs.items() if not found]
    if missing:
        text = (f"NO BROWSER TEST: {', '.join(missing)} not found, so the front end was not tried. Install what is "
                "missing (npm install playwright-core), or set CHROMIUM and PLAYWRIGHT_CORE.")
        warnings.warn(text, stacklevel=1)
        pytest.skip(text)

    def run(job: dict) -> dict:
        job = {"base": server.url, "chromium": chromium, "screenshots": None, **job}
        done = subprocess.run([programs["node"], str(HERE / "browser.cjs"), json.dumps(job)], capture_output=True,
                              env={**os.environ, "PLAYWRIGHT_CORE": programs["playwright-core"]}, text=True,
                              timeout=570, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def screenshots() -> str | None:
    """The folder for those that only people look at: they take a second or two each."""
    folder = os.environ.get("MAGIHUMAN_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    return folder or None


def test_every_workflow_loads_whole_and_means_what_the_api_tests_ran(server, browse, screenshots, record_property):
    looked = browse({"look": {path.stem: str(path) for path in WORKFLOWS}, "screenshots": screenshots})
    assert looked["errors"] == []
    record_property("front end", looked["version"])
    if front_end_flags():
        assert looked["version"] == version("comfyui-frontend-package")
    known = server.get("/object_info")
    for path in WORKFLOWS:
        workflow, seen = json.loads(path.read_text(encoding="utf-8")), looked["looked"][path.stem]
        assert (seen["missing"], seen["overlaps"], seen["links"]) == ([], [], len(workflow["links"])), path.stem
        ours = to_api(workflow, known)
        assert {key: node["class_type"] for key, node in seen["prompt"].items()} == {
            key: node["class_type"] for key, node in ours.items()}
        for key, node in ours.items():
            theirs = seen["prompt"][key]["inputs"]
            assert {name: theirs.get(name) for name in node["inputs"]} == node["inputs"], (path.stem, node)


@pytest.fixture(scope="module")
def bare(comfyui, tmp_path_factory):
    """A ComfyUI that has the pack, and nothing downloaded."""
    with Server(find_python(comfyui), comfyui, make_base(tmp_path_factory.mktemp("bare") / "base"),
                *front_end_flags()) as server:
        yield server


def test_every_missing_model_is_named_by_the_page_or_by_the_note(bare, browse, screenshots):
    path = WORKFLOWS[0].parent / "lip_sync_540p.json"
    workflow = json.loads(path.read_text(encoding="utf-8"))
    (note,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    known = bare.get("/object_info")
    said = browse({"base": bare.url, "bare": {path.stem: str(path)}, "screenshots": screenshots})["bare"]
    chosen = [widget_values(known[node["type"]], node["widgets_values"])[0] for node in workflow["nodes"]
              if node["type"].startswith("MagiHuman") and node["type"].endswith("Loader")]
    names = [next(value for key, (value, *_) in values.items() if key in ("model", "vae", "text_encoder"))
             for values in chosen]
    assert len(names) == 6
    for name in names:
        assert f"`{name}`" in note.split("Not in it:")[1] if name.endswith("/") else name in said, name


def test_in_nodes_2_no_node_covers_another_where_files_are_missing(bare, browse, screenshots):
    """Each node whose file is missing has a footer then."""
    drawn = browse({"base": bare.url, "vue": {path.stem: str(path) for path in WORKFLOWS},
                    "screenshots": screenshots})["vue"]
    counts = {path.stem: len(json.loads(path.read_text(encoding="utf-8"))["nodes"]) for path in WORKFLOWS}
    assert drawn == {name: {"nodes": count, "overlaps": []} for name, count in counts.items()}


def test_a_node_shows_its_warnings_until_it_runs_without(browse, screenshots):
    path = next(path for path in WORKFLOWS if path.stem == "text_to_clip")
    good = next(node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]
                if node["type"] == "MagiHumanPrompt")["widgets_values"][0]
    answer = browse({"warn": {"file": str(path), "node": "MagiHumanPrompt", "values": ["He nods.", good],
                              "screenshot": screenshots and f"{screenshots}/warned.png"}})
    first, second = answer["warn"]
    assert first.startswith("MagiHuman Prompt: The body has 2 words") and len(first.splitlines()) > 1
    assert (second, answer["errors"]) == ("No warnings.", [])


def test_a_check_shows_its_report_on_the_canvas_and_in_nodes_2(browse, screenshots):
    answer = browse({"check": f"{screenshots}/checked.png" if screenshots else ""})
    report = answer["check"]["widget"]
    lines = [line.strip() for line in report.splitlines()]
    assert lines[0].startswith("For: ") and lines[1].startswith("Looked in: ") and len(lines) > 9
    for page in ("canvas", "vue"):
        drawn = [line.strip() for line in answer["check"][page].splitlines()]
        assert lines[0] in drawn and "Set:" in drawn, page
    assert answer["errors"] == []


@pytest.mark.timeout(600)
def test_the_demo_runs_from_the_template_list(server, browse, screenshots, tmp_path):
    folder = Path(screenshots or tmp_path)
    answer = browse({"run": {"pack": PACK, "name": "demo", "folder": str(folder)}})
    run = answer["run"]
    assert answer["errors"] == []
    assert (run["missing"], run["status"], run["end"]) == ([], 200, "success")
    assert [(video["width"], video["height"]) for video in run["videos"]] == [(128, 128)]
    assert abs(run["videos"][0]["seconds"] - 49 / 25) < 0.1
    (saved,) = [entry for output in run["outputs"].values() for entry in output.get("images", ())
                if entry["filename"].endswith(".mp4")]
    with av.open(str(server.base / "output" / saved["subfolder"] / saved["filename"])) as file:
        assert len(file.streams.audio) == 1
        assert {"prompt", "workflow"} <= set(file.metadata)  # dropped on the page, the video brings its graph
    assert (folder / "run.png").stat().st_size > 20_000
