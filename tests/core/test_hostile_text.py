"""Texts and tokenizers that are made to take forever: everything that reads a user's text does so in linear time."""

import ast
import json
import time
from contextlib import suppress

import pytest

from magihuman_core.errors import CheckpointError, InputError
from magihuman_core.loading.folder import find_models
from magihuman_core.loading.text_encoder import load_tokenizer, read_tokenizer
from magihuman_core.loading.wishes import parse_wish
from magihuman_core.pipeline.demo import remarks
from magihuman_core.text.encoder import TextEncoder
from magihuman_core.text.prompt import build_prompt, check_prompt, check_text, space_cjk, split_line
from magihuman_core.text.script import parse_script

from .golden import ROOT

N = 99_000  # characters
PIECES = ["a", " ", "\t", ",", ", ", ":", "<", ">", '"', "<a,", "<a, ", "\u5b57", "\u5b57 ", "\u3000", "\n", "a\n",
          "Dialogue", "Dialogue ", "Dialogue:\n", "Background Sound:", "a'", "1", "1.", "s ", "(", "((a", "_", "\u202e",
          "\u0301", "\U0001f600", "a,b:", "says: "]
AROUND = [("", ""), ("a,", "b"), ("<a,", ">"), ("Dialogue:\n<a,", "b"), ("4", "x"), ("Dialogue:\n<a, English>:", '"b'),
          ("\u5b57", "\u5b57")]


def readers():
    demo = find_models("demo")
    return {
        "space_cjk": space_cjk, "check_prompt": check_prompt, "split_line": split_line,
        "body": lambda text: build_prompt(text), "line": lambda text: build_prompt("body", [("a", "English", text)]),
        "sound": lambda text: build_prompt("body", (), text), "script": lambda text: parse_script(text, "script"),
        "wish": parse_wish,
        "demo": lambda text: list(remarks(demo, [text], picture=False, size=(128, 128), large=None))}


def demo_tokenizer():
    return load_tokenizer(find_models("demo")["text_encoder"].parent / "tokenizer.json")


@pytest.mark.parametrize("name", [*readers(), "tokenizer"])
def test_100_000_characters_are_read_at_once(name):
    read = readers()[name] if name in readers() else demo_tokenizer().encode
    for piece in PIECES:
        for before, after in AROUND:
            text = before + piece * (N // len(piece)) + after
            start = time.process_time()
            with suppress(InputError):
                read(text)
            assert time.process_time() - start < 2, (name, piece[:9], before, after)


@pytest.mark.parametrize("text", ["a woman \ud83d says", "\udce9", "x" * 100_001, "", "  ", None, 7])
def test_what_is_no_prompt(text):
    encoder = TextEncoder.tokenize
    with pytest.raises(InputError, match="prompt"):
        check_text(text)
    with pytest.raises(InputError, match="prompt"):
        encoder(None, text)  # type: ignore[arg-type]


@pytest.mark.parametrize(("line", "found"), [
    ("young woman, English: Hello", ("young woman", "English", "Hello")),
    ("<young woman, English>: Hello", ("young woman", "English", "Hello")),
    ("young woman, red coat, English: Well, I said: yes", ("young woman, red coat", "English", "Well, I said: yes")),
    ("Anna: a woman, French: Oui", ("Anna: a woman", "French", "Oui")),
    ("\u5973\u58eb\uff0cMandarin\uff1a\u4f60\u597d", ("\u5973\u58eb", "Mandarin", "\u4f60\u597d")),
    ('man , German : "Ja"', ("man", "German", '"Ja"')),
    ("no comma: words", None), ("a, b", None), (", English: x", None), ("a, : x", None), ("a, English: ", None),
    ("a<b, English: x", None)])
def test_dialogue_lines(line, found):
    assert split_line(line) == found


@pytest.mark.parametrize(("line", "seconds", "prompt"), [
    ("4 A woman", 4, "A woman"), ("4s A woman", 4, "A woman"), ("4.5 s: A woman", 4.5, "A woman"),
    ("4 she says", 4, "she says"), ("4, s and t", 4, "s and t"), ("4 s", 4, "s"), ("4:  x", 4, "x")])
def test_script_lines(line, seconds, prompt):
    [segment] = parse_script(line, "script")
    assert (segment.seconds, segment.prompt) == (seconds, prompt)


def tokenizer_with(**parts) -> str:
    content = json.loads((find_models("demo")["text_encoder"].parent / "tokenizer.json").read_text())
    return json.dumps({**content, **parts})


GROWING = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40
HOSTILE = {
    "grows": {"normalizer": {"type": "Sequence", "normalizers": GROWING}},
    "grows at once": {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10_000}},
    "grows inside": {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Sequence", "normalizers": GROWING[:20]}, {"type": "Sequence", "normalizers": GROWING[:20]}]}},
    "a pattern": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                                    "invert": False}},
    "choices": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|a)" * 30 + "b"}, "behavior": "Isolated",
                                  "invert": False}},
    "a pattern in normalizing": {"normalizer": {"type": "Replace", "pattern": {"Regex": "a*a*a*a*b"}, "content": ""}},
    "a pattern in a sequence": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(?:a|aa)*c"}, "behavior": "Isolated", "invert": False}]}}}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tokenizer_that_is_a_program_is_refused(tmp_path, name):
    content = tokenizer_with(**HOSTILE[name])
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer\.json \(it (holds a pattern|makes texts)"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tokenizer(content, "file")


def test_usual_tokenizers_are_taken(tmp_path):
    gemma = {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
             "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                               "invert": False}}
    for parts in (gemma, {"normalizer": {"type": "NFKC"}, "pre_tokenizer": {"type": "ByteLevel",
                  "add_prefix_space": False, "trim_offsets": True, "use_regex": True}}, {}):
        (tmp_path / "tokenizer.json").write_text(tokenizer_with(**parts))
        assert load_tokenizer(tmp_path).encode("a woman").ids is not None


# Every pattern that a user's text meets, so that a new one is looked at: file -> how many, and why they are linear.
PATTERNS = {
    "magihuman_core/text/prompt.py": 6,      # runs that end where another character begins, tried above
    "magihuman_core/text/script.py": 1,      # digits
    "magihuman_core/loading/wishes.py": 1,   # words
    "magihuman_core/pipeline/demo.py": 2,    # words
    "nodes/adapter/lora.py": 1,              # a block's number in the name of a weight
}


def test_every_pattern_for_texts_is_known():
    found = {}
    for folder in ("magihuman_core/text", "magihuman_core/pipeline", "nodes", "magihuman_core/loading"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
                     and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
                     and node.func.value.id == "re"]
            if calls:
                found[path.relative_to(ROOT).as_posix()] = len(calls)
    assert found == PATTERNS
