"""The form of prompt the model was trained on, and the default negative prompt.

    <one paragraph in English: person, face and lips in order of time, the quoted line, camera, light>

    Dialogue:
    <young woman in a red coat, English>: "I never thought that you would come."

    Background Sound:
    <No prominent background sound>

A spoken line stands twice: quoted in the body where it is said, and under Dialogue.
"""

import re
import unicodedata
from collections.abc import Sequence

from ..errors import InputError

LANGUAGES = ("Mandarin", "Cantonese", "English", "Japanese", "Korean", "German", "French")
MAX_CHARACTERS = 100_000  # of a text; a prompt has about a thousand
NO_BACKGROUND_SOUND = "No prominent background sound"
FEWEST_WORDS = 100         # a body should have 150 to 200; below this the loss is plain to see

# Three blocks: picture, sound, delivery of speech. The base model was tuned with all three, and leaving
# one out is visible or audible.
DEFAULT_NEGATIVE_PROMPT = (
    "overly bright colors, blown-out highlights, overexposed, motionless picture, smeared details, blurry, out of "
    "focus, subtitles, captions, watermark, drawing, painting, illustration look, cartoon, still image, dull grey "
    "cast, bad quality, low resolution, JPEG blocks, compression artifacts, ugly, unfinished, incomplete, badly drawn "
    "hands, extra fingers, missing or fused fingers, badly drawn face, disfigured features, deformed limbs, mutilated "
    "body, frozen frame, cluttered messy background, crowd of people behind, three legs, extra legs, walking "
    "backwards, "
    "background noise, static, hiss, mains hum, buzzing, crackling, popping, codec artifacts, digital glitches, "
    "clipping, distortion, muffled, muddy, unclear sound, echo, too much reverb, hollow, boxy, distant microphone, "
    "harsh, shrill, piercing, sibilant, tinny, thin, boomy, lifeless flat mix, over-compressed dynamics, uneven "
    "loudness, abrupt cuts, dropouts, sudden silence, looping sound, background music, sirens, traffic, crowd chatter, "
    "unrelated sound effects, cheap recording, amateur audio, "
    "emotionless voice, flat intonation, robotic, monotone, reading from a script, synthetic text-to-speech voice, "
    "artificial, insincere, overacted, theatrical, hesitant, unsure, timid, weak voice, stuttering, stammering, filler "
    "words, mumbling, slurred words, mispronounced words, wrong accent, lisp, vocal fry, creaky voice, lip smacks, "
    "mouth clicks, loud breathing, gasps, plosive pops, coughing, throat clearing, speaking too fast, speaking too "
    "slowly, rushed, dragging, unnatural pauses, choppy rhythm, lips out of sync, several people talking at once, "
    "overlapping voices, voices in the background, off-key, out of tune"
)

# Han, kana, bopomofo and Hangul. CJK punctuation is not in it: no space stands before a comma.
_CJK = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u3131-\u318e"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\u1100-\u11ff\uac00-\ud7a3\U00020000-\U0003ffff"
)
_BETWEEN_CJK = re.compile(f"(?<=[{_CJK}])[ \t\u3000]*(?=[{_CJK}])")
_CJK_TOGETHER = re.compile(f"[{_CJK}]{{2}}")
_QUOTES = "\"\u201c\u201d\u201e\u201f\u300c\u300d\u300e\u300f\u00ab\u00bb"
# What ends a quotation that a mark begins: in English, German, French, Swedish, Chinese and Japanese.
_CLOSING = {'"': '"', "\u201c": "\u201d", "\u201e": "\u201c\u201d", "\u201f": "\u201d", "\u201d": "\u201d",
            "\u300c": "\u300d", "\u300e": "\u300f", "\u00ab": "\u00bb", "\u00bb": "\u00ab\u00bb"}
_HEADING = re.compile(r"^[ \t]*(Dialogue|Background Sound)[ \t]*:[ \t]*", re.MULTILINE | re.IGNORECASE)


def check_text(text: object, what: str = "prompt") -> str:
    """A text that can be read. Raises InputError for one that is empty, far too long, or holds half characters."""
    if text is not None and not isinstance(text, str):
        raise InputError(f"the {what} is {type(text).__name__}, expected text.")
    if text is None or not text.strip():
        raise InputError(f"the {what} is empty; write what is to be seen and heard.")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"the {what} has {len(text):,} characters, of which about 3000 can be used. Write less.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the {what} holds half a character ({text[error.start]!a}, at place {error.start}), "
                         "which is no text. Type it anew.") from None
    return text


def text_lines(text: str) -> list[str]:
    """A text's lines, as editors show them: splitlines would part it at characters that may stand within a prompt."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def split_line(text: str) -> tuple[str, str, str] | None:
    """'speaker, Language: words' as these three, without the brackets that may stand around the first two.

    Commas and colons may be the wide ones of Chinese and Japanese keyboards. None for another form. In one pass over
    the text, whatever it holds.
    """
    comma = -1
    for place, character in enumerate(text):
        if character in ",\uff0c":
            comma = place
        elif character in ":\uff1a" and comma >= 0:
            speaker, language = text[:comma].strip(), text[comma + 1 : place].strip()
            speaker, language = speaker.removeprefix("<"), language.removesuffix(">")
            words = text[place + 1 :].strip()
            parts = speaker.strip(), language.strip(), words
            return parts if all(parts) and not any(bracket in speaker + language for bracket in "<>") else None
    return None


def space_cjk(text: str) -> str:
    """Put one space between neighbouring Chinese, Japanese or Korean characters, as the model was trained."""
    # Hangul may come decomposed into letters; only whole syllables are to be set apart.
    return _BETWEEN_CJK.sub(" ", unicodedata.normalize("NFC", text))


def build_prompt(body: str, dialogue: Sequence[tuple[str, str, str]] = (), background_sound: str | None = None) -> str:
    """The complete prompt from its parts.

    body: the description, in English, 150 to 200 words, with every line quoted where it is said.
    dialogue: (speaker in about five words, language, line) each; the language one of LANGUAGES, in any case.
    background_sound: the most prominent one; None or empty: there is none. Without dialogue that part is left out.
    Raises InputError for empty parts, an unknown language, or parts that stand in the body already. check_prompt(...)
    of the result tells what could be better.
    """
    body = _one_line(body)
    if not body:
        raise InputError("the prompt's body is empty; describe person, face, speech, camera and light.")
    if re.search(r"(?:^|\s)(Dialogue|Background Sound)\s*:\s*<", body, re.IGNORECASE):
        raise InputError("the prompt's body already holds a Dialogue: or Background Sound: part; take these "
                         "out of the body and give them as dialogue and background sound.")
    parts = [body]
    if dialogue:
        lines = (_dialogue_line(number, *entry) for number, entry in enumerate(dialogue, 1))
        parts.append("\n".join(["Dialogue:", *lines]))
    sound = _one_line(background_sound or "").strip("<> ") or NO_BACKGROUND_SOUND
    parts.append(f"Background Sound:\n<{sound}>")
    return space_cjk("\n\n".join(parts))


def check_prompt(text: str) -> list[str]:
    """What in a prompt departs from the form the model was trained on: one sentence each, [] if all is well.

    Length in tokens is not looked at here: the text encoder warns of that. Raises InputError when text is empty.
    """
    check_text(text)
    body, parts = _split(text)
    warnings = []
    together = _BETWEEN_CJK.sub("", unicodedata.normalize("NFC", body))  # or a spaced-out line counts as many words
    words = len(re.findall(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*", together))
    if words < FEWEST_WORDS:
        warnings.append(f"The body has {words} words; 150 to 200 are best, fewer visibly cost quality.")
    if "dialogue" not in parts:
        warnings.append("There is no 'Dialogue:' part; when somebody speaks, add it with the line once more.")
    else:
        warnings += _check_dialogue(parts["dialogue"], body)
    sound = parts.get("background sound")
    if sound is None:
        warnings.append("There is no 'Background Sound:' part; where there is no such sound, write "
                        f"<{NO_BACKGROUND_SOUND}>.")
    elif not re.fullmatch(r"<[^<>]+>", sound):
        warnings.append("The 'Background Sound:' part should be one description in angle brackets.")
    if _CJK_TOGETHER.search(unicodedata.normalize("NFC", text)):
        warnings.append("Chinese, Japanese and Korean characters should be separated by single spaces.")
    return warnings


def _check_dialogue(section: str, body: str) -> list[str]:
    lines = [line.strip() for line in text_lines(section) if line.strip()]
    if not lines:
        return ["The 'Dialogue:' part is empty; add a line or leave the part out."]
    warnings = []
    heard = _comparable(body)
    for number, text in enumerate(lines, 1):
        found = _trained_form(text)
        if found is None:
            warnings.append(f'Dialogue line {number} should read <short description, Language>: "line".')
            continue
        language, words = found
        if language.casefold() not in {name.casefold() for name in LANGUAGES}:
            warnings.append(f"Dialogue line {number} is in {language!r}; the model speaks {', '.join(LANGUAGES)}.")
        if _comparable(words) not in heard:
            warnings.append(f"Dialogue line {number} is not quoted in the body; it must stand there too, "
                            "where it is said.")
    return warnings


def _trained_form(text: str) -> tuple[str, str] | None:
    """(language, words) of a line that reads <speaker, Language>: "words"; None for any other."""
    inside, bracket, rest = text.removeprefix("<").partition(">")
    speaker, comma, language = inside.rpartition(",")
    colon, words = rest.lstrip()[:1], rest.lstrip()[1:].strip()
    fits = (text.startswith("<") and bracket and comma and speaker.strip() and language.strip() and "<" not in inside
            and colon == ":" and len(words) > 2 and words[0] == words[-1] == '"')
    return (language.strip(), words[1:-1]) if fits else None


def _split(text: str) -> tuple[str, dict[str, str]]:
    """Body, and the other parts by their heading in small letters."""
    headings = list(_HEADING.finditer(text))
    if not headings:
        return text, {}
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    parts = {heading[1].lower(): text[heading.end():end].strip() for heading, end in zip(headings, ends, strict=True)}
    return text[:headings[0].start()], parts


def _dialogue_line(number: int, speaker: str, language: str, line: str) -> str:
    speaker, line = _one_line(speaker).strip("<>, "), _unquoted(_one_line(line))
    for value, what in ((speaker, "speaker"), (line.strip(_QUOTES), "line")):
        if not value:
            raise InputError(f"dialogue line {number} has no {what}; give a short description of the "
                             "speaker, the language and the line.")
    if "<" in speaker or ">" in speaker:
        raise InputError(f"dialogue line {number}: the speaker {speaker!r} holds < or >; use words only.")
    known = {name.casefold(): name for name in LANGUAGES}
    name = known.get(_one_line(language).casefold())
    if name is None:
        raise InputError(f"dialogue line {number}: the model does not speak {language!r}; choose one of "
                         f"{', '.join(LANGUAGES)}.")
    # A quotation mark inside would end the line early for the model.
    return f"<{speaker}, {name}>: \"{line.translate(dict.fromkeys(map(ord, _QUOTES), chr(39)))}\""


def _unquoted(text: str) -> str:
    """A line without the quotation marks around the whole of it; those of a quotation at its start or end stay."""
    first, inside, last = text[:1], text[1:-1], text[-1:]
    closing = _CLOSING.get(first, "")
    if len(text) < 2 or last not in closing:
        return text
    depth = 0
    for before, mark in zip(" " + inside, inside, strict=False):
        if mark == first and (mark not in closing or before.isspace() or before in "(["):
            depth += 1
        elif mark in closing:
            depth -= 1
        if depth < 0:  # the first one ends here
            return text
    return inside.strip()


def _one_line(text: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"a part of the prompt is {type(text).__name__}, expected text.")
    if text.strip():
        check_text(text, "part of the prompt")
    return " ".join(text.split())


def _comparable(text: str) -> str:
    """Only letters and digits, in one case: quotation marks, spacing and punctuation make no difference."""
    return "".join(letter for letter in unicodedata.normalize("NFC", text).casefold() if letter.isalnum())
