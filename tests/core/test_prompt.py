"""The form of prompt and its checks."""

import pytest

from magihuman_core.errors import InputError
from magihuman_core.text.prompt import DEFAULT_NEGATIVE_PROMPT, LANGUAGES, build_prompt, check_prompt, space_cjk

LINE = "I kept the letter all these years."
BODY = (
    "A woman of about thirty with short dark hair and a grey pullover sits still before a plain wall, "
    "calm and a little sad. At first her lips are closed and her brows rest level. The inner ends of her "
    "brows rise, her eyelids lower a little, and her lips part. She says, \u201cI kept the letter, all "
    "these years.\u201d Her jaw opens evenly with each word, the corners of her mouth pulled slightly "
    "down. Her voice is soft and low, her pace slow, with a short rest after the first words. When she "
    "has spoken her lips meet again, the muscles of her chin tighten, and she breathes in through her "
    "nose. Her shoulders stay where they are, and her gaze stays on one point beside the camera. A static"
    " medium close-up at eye level, the face in sharp focus in the middle of the picture, the wall soft "
    "behind it, light from a window on the left."
)


def test_three_parts():
    text = build_prompt(BODY, [("Woman in grey pullover", "English", LINE)], "Rain on a window")
    body, dialogue, sound = text.split("\n\n")
    assert body == BODY
    assert dialogue == f'Dialogue:\n<Woman in grey pullover, English>: "{LINE}"'
    assert sound == "Background Sound:\n<Rain on a window>"
    assert check_prompt(text) == []
    assert "angle brackets" in check_prompt(text.replace("<Rain", "Rain").replace("window>", "window"))[-1]
    quoted = build_prompt(BODY, [("Man", "English", 'She said "no" to me.')])  # which does not end the line
    assert "<Man, English>: \"She said 'no' to me.\"" in quoted


@pytest.mark.parametrize(("line", "written"), [
    ('"Hello."', "Hello."), (" \u201cHello.\u201d ", "Hello."), ("\u201eJa.\u201c", "Ja."), ("\u00bbJa.\u00ab", "Ja."),
    ("\u300c\u597d\u300d", "\u597d"), ("Hello.", "Hello."),
    ('She told me "never again"', "She told me 'never again'"), ('"Never" is long', "'Never' is long"),
    ('"Yes," she said, "never"', "'Yes,' she said, 'never'"), ('"She said "no" to me"', "She said 'no' to me"),
    ('"She told me "never again""', "She told me 'never again'"),
    ("\u201cYes,\u201d she said, \u201cno.\u201d", "'Yes,' she said, 'no.'"),
    ("\u201cShe said \u201cno.\u201d\u201d", "She said 'no.'"),
    ("\u201eJa\u201c, sagt sie, \u201enein.\u201c", "'Ja', sagt sie, 'nein.'"),
])
def test_only_the_quotation_marks_around_a_whole_line_are_left_out(line, written):
    assert f'<Man, English>: "{written}"' in build_prompt(BODY, [("Man", "English", line)])


@pytest.mark.parametrize("silence", [
    None, "", "  ", "No prominent background sound", "<No prominent background sound>"])
def test_no_background_sound_is_written_literally(silence):
    assert build_prompt(BODY, background_sound=silence).endswith(
        "\n\nBackground Sound:\n<No prominent background sound>")
    assert "Dialogue" not in build_prompt(BODY, background_sound=silence)


def test_languages_are_known_by_their_names():
    for language in LANGUAGES:
        assert f"<Man, {language}>" in build_prompt(BODY, [("Man", language.upper(), "Hm.")])
    with pytest.raises(InputError, match=r"line 2.*'Chinese'.*Mandarin, Cantonese"):
        build_prompt(BODY, [("Man", "English", "Hm."), ("Man", "Chinese", "Hm.")])


@pytest.mark.parametrize(("text", "spaced"), [
    ("\u4f60\u597d", "\u4f60 \u597d"),                                              # Han
    ("\u4f60  \u597d", "\u4f60 \u597d"),                                            # already spaced, too much
    ("\u597d\uff0c\u4f60\u597d\u3002", "\u597d\uff0c\u4f60 \u597d\u3002"),          # none around punctuation
    ("\u30b3\u30fc\u3072", "\u30b3 \u30fc \u3072"),                                 # kana with a long mark
    ("\ub098 \ube44\ubc88", "\ub098 \ube44 \ubc88"),                                # Hangul
    ("\u1102\u1161\u1107\u1175", "\ub098 \ube44"),                                  # Hangul in letters
    ("he says \u4f60 x\u597d 42", "he says \u4f60 x\u597d 42"),                     # Latin as it is
    ("plain English", "plain English"),
])
def test_cjk_characters_stand_apart(text, spaced):
    assert space_cjk(text) == spaced
    assert space_cjk(spaced) == spaced


def test_cjk_line_is_spaced_in_both_places_and_found_again():
    line = "\u6709\u7684\u4eba\uff0c\u8fd8\u5e26\u7740"
    text = build_prompt(f"{BODY} He says, \"{line}\"", [("Man", "Mandarin", f"\u201c{line}\u201d")])
    assert text.count("\u6709 \u7684 \u4eba\uff0c\u8fd8 \u5e26 \u7740") == 2
    assert check_prompt(text) == []
    assert any("single spaces" in warning for warning in check_prompt(text + line))


def test_a_spaced_cjk_line_does_not_make_a_short_body_long():
    body = "He says, " + "\u6709\u7684\u4eba" * 60
    assert any("words" in warning for warning in check_prompt(build_prompt(body)))


def test_check_names_what_is_missing():
    warnings = check_prompt("A man speaks.")
    assert len(warnings) == 3
    assert "3 words" in warnings[0] and "'Dialogue:'" in warnings[1] and "'Background Sound:'" in warnings[2]


@pytest.mark.parametrize(("dialogue", "said"), [
    ('<Woman, English>: "Something she never says."', "not quoted"),
    (f'<Woman, Latin>: "{LINE}"', "'Latin'"),
    (f'Woman: "{LINE}"', "should read"),
    ("", "empty"),
])
def test_check_looks_at_dialogue_lines(dialogue, said):
    text = f"{BODY}\n\nDialogue:\n{dialogue}\n\nBackground Sound:\n<Rain>"
    warnings = check_prompt(text)
    assert len(warnings) == 1 and said in warnings[0]


@pytest.mark.parametrize(("body", "dialogue", "words"), [
    ("", (), "body is empty"), (" \n", (), "body is empty"), (None, (), "expected text"),
    (BODY, [("", "English", LINE)], "line 1"), (BODY, [("Woman", "English", " ")], "line 1"),
    (BODY, [("Woman", "English", '"')], "line 1"), (BODY, [("Woman", "English", '" "')], "line 1"),
    (BODY, [("a > b", "English", LINE)], "line 1"),
    (build_prompt(BODY, [("Woman", "English", LINE)]), (), "Dialogue"),
])
def test_unusable_parts_are_refused(body, dialogue, words):
    with pytest.raises(InputError, match=words):
        build_prompt(body, dialogue)
    if not (body or "").strip():
        with pytest.raises(InputError, match="empty"):
            check_prompt(body)


def test_negative_prompt_has_all_three_blocks():
    entries = DEFAULT_NEGATIVE_PROMPT.split(", ")
    assert len(entries) == len(set(entries)) > 100
    assert all(entry and entry == entry.strip() for entry in entries)
    picture = ("overexposed", "subtitles", "painting", "compression artifacts", "extra fingers",
               "deformed limbs", "frozen frame", "extra legs", "walking backwards")
    sound = ("hiss", "mains hum", "crackling", "codec artifacts", "clipping", "muffled", "echo", "tinny",
             "boomy", "over-compressed dynamics", "abrupt cuts", "looping sound", "background music")
    delivery = ("robotic", "monotone", "reading from a script", "overacted", "stuttering", "mumbling",
                "lisp", "vocal fry", "plosive pops", "coughing", "speaking too fast", "speaking too slowly",
                "unnatural pauses", "voices in the background", "out of tune")
    first, second, third = ([entries.index(entry) for entry in block] for block in (picture, sound, delivery))
    assert max(first) < min(second) and max(second) < min(third)
