"""Help pages and translations say what the nodes say: every node, every input, ranges, choices and messages.

The schemas are read from the sources of nodes/, without ComfyUI: calls of io.Schema and io.X.Input are
evaluated as far as they are made of constants.
"""

import ast
import importlib
import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NODES = ROOT / "nodes"
PAGES = ROOT / "web" / "docs"
LOCALES = ROOT / "locales"
SECTIONS = ["Inputs", "Outputs", "Wiring", "Messages", "Tips"]
UNKNOWN = object()  # what only a running ComfyUI knows, such as a list of files


class Source:
    """A module of nodes/: its classes, and the constants and functions that its schemas are made of."""

    def __init__(self, path: Path):
        self.path, self.tree, self.names = path, ast.parse(path.read_text(encoding="utf-8")), {}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef):
                self.names[node.name] = node
            elif isinstance(node, ast.ImportFrom):
                self.names.update({alias.asname or alias.name: (node, alias.name) for alias in node.names})
            elif isinstance(node, ast.Assign):
                self._assign(node.targets[0], node.value)

    def _assign(self, target, value):
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Tuple):
            for name, part in zip(target.elts, value.elts, strict=True):
                self._assign(name, part)

    def look_up(self, name: str):
        """The value of a module's name, through imports; the core's are the real ones."""
        found = self.names.get(name, UNKNOWN)
        if isinstance(found, tuple):
            node, name = found
            module = node.module or ""
            if node.level == 0:
                return UNKNOWN
            if module.startswith("magihuman_core"):
                return getattr(importlib.import_module(module), name)
            return source(NODES.joinpath(*module.split(".")).with_suffix(".py")).look_up(name)
        return UNKNOWN if found is UNKNOWN else self.value(found, {})

    def value(self, node, local: dict):
        """The value of an expression, an Entry for a call of io.*, or UNKNOWN."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return local[node.id] if node.id in local else self.look_up(node.id)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.value(node.left, local) + self.value(node.right, local)
        if isinstance(node, ast.JoinedStr):
            return "".join(str(self.value(part, local)) for part in node.values)
        if isinstance(node, ast.FormattedValue):
            return self.value(node.value, local)
        if isinstance(node, (ast.List, ast.Tuple)):
            return [item for part in node.elts for item in (
                self.value(part.value, local) if isinstance(part, ast.Starred) else [self.value(part, local)])]
        if isinstance(node, ast.Dict):
            return {self.value(key, local): self.value(value, local)
                    for key, value in zip(node.keys, node.values, strict=True)}
        if isinstance(node, ast.Subscript):
            return self.value(node.value, local)[self.value(node.slice, local)]
        if isinstance(node, ast.Attribute):
            return getattr(self.value(node.value, local), node.attr, UNKNOWN)
        if isinstance(node, ast.Call):
            return self.call(node, local)
        return UNKNOWN

    def call(self, node: ast.Call, local: dict):
        arguments = [self.value(argument, local) for argument in node.args]
        keywords = {keyword.arg: self.value(keyword.value, local) for keyword in node.keywords}
        name = ast.unparse(node.func)
        if name.startswith("io."):
            return Entry(name.split(".")[1], arguments, keywords)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "join":
            return self.value(node.func.value, local).join(arguments[0])
        if name in ("str", "list"):
            return {"str": str, "list": list}[name](arguments[0])
        function = self.names.get(name)
        if isinstance(function, ast.FunctionDef) and isinstance(function.body[-1], ast.Return):
            parameters = [argument.arg for argument in function.args.args]
            return self.value(function.body[-1].value, {**dict(zip(parameters, arguments, strict=False)), **keywords})
        return UNKNOWN


class Entry:
    """A call such as io.Int.Input("steps", default=8)."""

    def __init__(self, kind: str, arguments: list, keywords: dict):
        self.kind, self.keywords = kind, keywords
        self.id = arguments[0] if arguments else None

    def __getattr__(self, name):
        return self.keywords.get(name)


@cache
def source(path: Path) -> Source:
    return Source(path)


def schemas() -> dict[str, Entry]:
    found = {}
    for path in sorted(NODES.glob("*.py")):
        for function in ast.walk(source(path).tree):
            if isinstance(function, ast.FunctionDef) and function.name == "define_schema":
                schema = source(path).value(function.body[-1].value, {})
                found[schema.node_id] = schema
    return found


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


SCHEMAS = schemas()
LANGUAGES = ("en", "zh", "ja", "ko", "de", "fr")
# Letters that a text in the language has.
SCRIPTS = {"zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7a3]"}
every_node = pytest.mark.parametrize("name", SCHEMAS)
every_language = pytest.mark.parametrize("language", LANGUAGES)


def wanted_locale(schema: Entry) -> dict:
    """What a locale must hold of a node: the English texts in the form of nodeDefs.json."""
    inputs = {}
    for entry in schema.inputs:
        inputs[entry.id] = {"name": entry.display_name or entry.id}
        if entry.tooltip:
            inputs[entry.id]["tooltip"] = entry.tooltip
    outputs = {}
    for index, entry in enumerate(schema.outputs):
        # The frontend translates an output without a name of its own by its type.
        named = {"name": entry.display_name} if entry.display_name else {}
        texts = {**named, **({"tooltip": entry.tooltip} if entry.tooltip else {})}
        if texts:
            outputs[str(index)] = texts
    result = {"display_name": schema.display_name, "description": schema.description, "inputs": inputs}
    return {**result, "outputs": outputs} if outputs else result


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


def test_the_reader_finds_every_node():
    ids = re.findall(r"node_id=\"(\w+)\"", "".join(path.read_text() for path in NODES.glob("*.py")))
    assert sorted(SCHEMAS) == sorted(ids) and len(ids) >= 17
    everything = [text for schema in SCHEMAS.values() for _, text in texts(wanted_locale(schema))]
    assert all(isinstance(text, str) and text and "object at 0x" not in text for text in everything)
    assert SCHEMAS["MagiHumanSampler"].inputs[5].options == ["auto", "distilled", "full CFG", "super-resolution"]


def test_pages_lie_where_comfyui_looks_for_them():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (folder,) = [node.value.value for node in tree.body
                 if isinstance(node, ast.Assign) and node.targets[0].id == "WEB_DIRECTORY"]
    assert (ROOT / folder / "docs").resolve() == PAGES
    assert sorted(path.name for path in PAGES.iterdir()) == sorted(f"{name}.md" for name in SCHEMAS)


@every_node
def test_page_has_title_and_sections(name):
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {SCHEMAS[name].display_name}\n")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == SECTIONS
    assert not re.search(r"TODO|FIXME|XXX|lorem", page, re.IGNORECASE)


@every_node
def test_page_lists_the_inputs_and_outputs_as_they_are(name):
    schema = SCHEMAS[name]
    table = rows(name, "Inputs")
    assert [row[0] for row in table] == [f"`{entry.id}`" for entry in schema.inputs]
    for entry, (_, values, _) in zip(schema.inputs, table, strict=True):
        if entry.kind in ("Int", "Float"):
            found = [ast.literal_eval(number) for number in re.findall(r"\d+(?:\.\d+)?", values)]
            step = [entry.step] if entry.step else []
            assert found == [entry.min, entry.max, *step, entry.default], (entry.id, values)
        elif isinstance(entry.options, list):
            assert [f"`{option}`" for option in entry.options] == re.findall("`[^`]+`", values)
            assert f"`{entry.default}` (default)" in values or entry.default == "default"
        elif entry.kind not in ("String", "Combo"):
            assert values == entry.kind.upper() + (", optional" if entry.optional else "")
    outputs = [f"`{entry.display_name or entry.kind.upper()}`" for entry in schema.outputs]
    assert [row[0] for row in rows(name, "Outputs")] == outputs


@every_node
def test_messages_of_a_page_are_those_of_the_code(name):
    for message, _ in rows(name, "Messages"):
        parts = [re.escape(part.strip(" ")) for part in message.split("...") if part.strip(" .:;,")]
        pattern = re.compile(".*".join(parts), re.DOTALL)
        assert any(map(pattern.search, code_messages())), message


@every_language
def test_locale_covers_every_node_and_input_and_nothing_else(language):
    wanted = {name: wanted_locale(schema) for name, schema in SCHEMAS.items()}
    found = locale(language)
    assert sorted(path for path, _ in texts(wanted)) == sorted(path for path, _ in texts(found))


def test_english_locale_is_the_schema():
    """The frontend prefers it to the schema. When this fails, the translations want a look as well."""
    assert locale("en") == {name: wanted_locale(schema) for name, schema in SCHEMAS.items()}


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
    options = {(name, "inputs", entry.id, "tooltip"): entry.options for name, schema in SCHEMAS.items()
               for entry in schema.inputs if isinstance(entry.options, list)}
    quoted = {"built-in demo", *(option for choices in options.values() for option in choices)}
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


def numbers(text: str) -> list[str]:
    """The numbers of a text in order of size, with a point for decimals, without those in names such as T5Gemma."""
    return sorted(re.findall(r"(?<![A-Za-z\d.])\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d)", ".", text)))
