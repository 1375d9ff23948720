"""Help pages and translations say what the nodes say: every node, every input, ranges, choices and messages.

What the nodes are is read from the record that tests/comfyui/record_object_info.py makes; tests/comfyui holds the
record, and the English texts, to a running ComfyUI.
"""

import ast
import importlib.util
import json
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/comfyui"))

from record_object_info import PREFIX, RECORD  # noqa: E402
from ui_graph import inputs_of  # noqa: E402

NODES = ROOT / "nodes"
PAGES = ROOT / "web" / "docs"
LOCALES = ROOT / "locales"
SECTIONS = ["Inputs", "Outputs", "Wiring", "Messages", "Tips"]
RECORDED = {name: info for name, info in json.loads(RECORD.read_text(encoding="utf-8"))["nodes"].items()
            if name.startswith(PREFIX)}
LANGUAGES = ("en", "zh", "ja", "ko", "fr", "es")
# Letters that a text in the language has.
SCRIPTS = {"zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7a3]"}
every_node = pytest.mark.parametrize("name", RECORDED)
every_language = pytest.mark.parametrize("language", LANGUAGES)


@cache
def code_messages() -> tuple[str, ...]:
    """Every text in the sources, with ... for what is put in."""
    texts = []
    for path in [*NODES.rglob("*.py"), *(ROOT / "magihuman_core").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[sdr]", "...", node.value))
    return tuple(texts)


def choices(name: str) -> dict[str, list[str]]:
    """{input: what it offers} of a node, without lists of files."""
    return {key: options["options"] for key, (kind, options, _) in inputs_of(RECORDED[name]).items()
            if kind == "COMBO" and not options.get("files")}


@cache
def locale(language: str) -> dict:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def texts(value, path=()):
    """(path, text) of every string of a tree."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from texts(part, (*path, key))
    else:
        yield path, value


def section(name: str, heading: str) -> str:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    return page.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def rows(name: str, heading: str) -> list[list[str]]:
    """Cells of the first table of a section, without its head."""
    table = re.search(r"(?:^\|.*\n)+", section(name, heading) + "\n", re.MULTILINE)
    lines = table[0].splitlines()[2:] if table else []
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_record_has_every_node_and_input_of_the_sources():
    sources = "".join(path.read_text(encoding="utf-8") for path in NODES.glob("*.py"))
    assert sorted(re.findall(r"node_id=\"(\w+)\"", sources)) == sorted(RECORDED)
    assert len(RECORDED) >= 17
    inputs = {key for info in RECORDED.values() for key in inputs_of(info)}
    assert set(re.findall(r"io\.\w+\.Input\(\s*\"(\w+)\"", sources)) <= inputs


def test_pages_lie_where_comfyui_looks_for_them():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (folder,) = [node.value.value for node in tree.body
                 if isinstance(node, ast.Assign) and node.targets[0].id == "WEB_DIRECTORY"]
    assert (ROOT / folder / "docs").resolve() == PAGES
    assert sorted(path.name for path in PAGES.iterdir()) == sorted(f"{name}.md" for name in RECORDED)


@every_node
def test_page_has_title_and_sections(name):
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {RECORDED[name]['display_name']}\n")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == SECTIONS
    assert not re.search(r"TODO|FIXME|XXX|lorem", page, re.IGNORECASE)


@every_node
def test_page_lists_the_inputs_and_outputs_as_they_are(name):
    inputs, offered = inputs_of(RECORDED[name]), choices(name)
    table = rows(name, "Inputs")
    assert [row[0] for row in table] == [f"`{key}`" for key in locale("en")[name]["inputs"]]
    for key, values, _ in table:
        key = key.strip("`")
        kind, options, required = inputs[key]
        if kind in ("INT", "FLOAT"):
            found = [ast.literal_eval(number) for number in re.findall(r"\d+(?:\.\d+)?", values)]
            wanted = [options[part] for part in ("min", "max", "step", "default") if part in options]
            assert found == wanted, (key, values)
        elif key in offered:
            assert [f"`{option}`" for option in offered[key]] == re.findall("`[^`]+`", values)
            assert f"`{options['default']}` (default)" in values or options["default"] == "default"
        elif kind not in ("STRING", "COMBO"):
            assert values == kind + ("" if required else ", optional")
    assert [row[0] for row in rows(name, "Outputs")] == [f"`{output}`" for output in RECORDED[name]["output_name"]]


@every_node
def test_messages_of_a_page_are_those_of_the_code(name):
    for message, _ in rows(name, "Messages"):
        parts = [re.escape(part.strip(" ")) for part in message.split("...") if part.strip(" .:;,")]
        pattern = re.compile(".*".join(parts), re.DOTALL)
        assert any(map(pattern.search, code_messages())), message


@every_node
def test_english_locale_names_the_node_and_every_input_and_nothing_else(name):
    texts = locale("en")[name]
    assert texts["display_name"] == RECORDED[name]["display_name"]
    assert sorted(texts["inputs"]) == sorted(inputs_of(RECORDED[name]))
    assert set(map(int, texts.get("outputs", {}))) <= set(range(len(RECORDED[name]["output"])))


@every_language
def test_locale_covers_every_node_and_text_and_nothing_else(language):
    assert sorted(locale(language)) == sorted(RECORDED)
    assert sorted(path for path, _ in texts(locale(language))) == sorted(path for path, _ in texts(locale("en")))


@every_language
def test_texts_are_translated_and_plain(language):
    english = dict(texts(locale("en")))
    for path, text in texts(locale(language)):
        assert isinstance(text, str) and text == text.strip() and text, path
        # The frontend reads these characters as placeholders, plural forms and links.
        assert not re.search(r"[{}@|$]", text), path
        if language != "en" and path[-1] in ("description", "tooltip"):
            assert text != english[path], path
            assert re.search(SCRIPTS.get(language, ""), text), path


@every_language
def test_translations_keep_numbers_and_choices(language):
    """Choices are not translated, so texts must name them as they stand in the list."""
    found = dict(texts(locale(language)))
    options = {(name, "inputs", key, "tooltip"): offered for name in RECORDED
               for key, offered in choices(name).items()}
    quoted = {"built-in demo", *(option for offered in options.values() for option in offered)}
    for path, english in texts(locale("en")):
        assert numbers(english) == numbers(found[path]), (path, found[path])
        named = [option for option in options.get(path, ())
                 if re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", english)]
        for option in [*named, *quoted.intersection(re.findall("'([^']+)'", english))]:
            assert option in found[path], (path, option)


@every_language
def test_translations_name_other_nodes_by_their_translated_titles(language):
    titles = {node["display_name"]: locale(language)[name]["display_name"] for name, node in locale("en").items()}
    assert len(set(titles.values())) == len(titles)
    pattern = re.compile("|".join(sorted(map(re.escape, titles), key=len, reverse=True)))
    found = dict(texts(locale(language)))
    for path, english in texts(locale("en")):
        for title in pattern.findall(english):
            assert titles[title] in found[path], (path, titles[title])


@cache
def page_titles() -> dict[str, dict[str, str]]:
    """{language: {id: title}} of core's nodes, as ComfyUI's page has them; empty where its package is not installed."""
    package = importlib.util.find_spec("comfyui_frontend_package")
    assets = Path(package.origin).with_name("static") / "assets" if package and package.origin else Path()
    titles = {}
    for path in assets.glob("nodeDefs-*.js.map"):
        source = json.loads(path.read_text(encoding="utf-8"))
        nodes = json.loads(source["sourcesContent"][0])
        titles[Path(source["sources"][0]).parent.name] = {
            name: node["display_name"] for name, node in nodes.items() if node.get("display_name")}
    return titles


@every_language
def test_nodes_of_core_are_named_as_the_page_names_them(language):
    pages = page_titles()
    if "en" not in pages:
        pytest.skip("comfyui-frontend-package is not installed, or has no source maps")
    assert language in pages, "ComfyUI's page does not offer this language, so that nobody sees our texts in it"
    ids: dict[str, list[str]] = {}
    for name, title in pages["en"].items():
        if len(re.findall("[A-Z]", title)) > 1:  # not such as "Note", which is a word, too
            ids.setdefault(title, []).append(name)
    ours = re.compile("|".join(re.escape(node["display_name"]) for node in locale("en").values()))
    pattern = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, ids), key=len, reverse=True))})(?!\w)")
    found, named = dict(texts(locale(language))), set()
    for path, english in texts(locale("en")):
        for title in pattern.findall(ours.sub("", english)):
            named.add(title)
            wanted = {pages[language].get(name, title) for name in ids[title]}
            assert any(each in found[path] for each in wanted), (path, wanted)
    assert {"Load Video", "Save Video", "Preview Audio", "SamplerCustomAdvanced"} <= named


def numbers(text: str) -> list[str]:
    """The numbers of a text in order of size, with a point for decimals, without those in names such as T5Gemma."""
    return sorted(re.findall(r"(?<![A-Za-z\d.])\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d)", ".", text)))
