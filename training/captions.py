"""Prompts of this small world, in the model's three parts: body, dialogue, background sound.

The words are a closed set (`vocabulary`), so a word-level tokenizer covers them all. Syllables stand
apart as words of their own; the spoken line stands twice, as in the real prompts.
"""

import re

from training.palette import CHOICES as SCENE_CHOICES
from training.voice import PACES, PROSODY, SYLLABLES

PITCH = {"woman": "clear", "man": "low", "child": "high"}
PRONOUNS = {"woman": ("she", "her"), "man": ("he", "his"), "child": ("the child", "the")}
WALL_WORDS = {"sky": "sky blue"}
NO_SOUND = "<No prominent background sound>"

BODIES = (
    "A {mood} {person} with {hair_phrase}, {skin} skin and {glasses} wears a {shirt} shirt in front of a "
    "{wall} wall. The lips open and close with every syllable as {they} says {pace} in a {pitch} voice: "
    '"{line}". The camera is static, a close shot in soft light.',
    "In front of a {wall} wall sits a {mood} {person} in a {shirt} shirt, with {hair_phrase}. {their} skin "
    'is {skin}, and there are {glasses}. In a {pitch} voice {they} {pace} says: "{line}", and the mouth '
    "follows each syllable. Static camera, close shot, soft light.",
    "A close shot in soft light with a static camera shows a {mood} {person}. {they} has {skin} skin, "
    "{hair_phrase} and {glasses}. The shirt is {shirt} and the wall is {wall}. The mouth opens and closes "
    'while {they} says {pace}, in a {pitch} voice: "{line}".',
)


def make_caption(attributes, syllables, phrasing=0):
    """Write the prompt of a clip.

    attributes: as in Clip.attributes (scene, person, language, pace); syllables: names or (name, start, end)
    tuples; phrasing: which of the bodies. Returns one string in three parts.
    """
    line = " ".join(s if isinstance(s, str) else s[0] for s in syllables)
    they, their = PRONOUNS[attributes["person"]]
    hair, style = attributes["hair"], attributes["hairstyle"]
    words = {
        **attributes,
        "line": line,
        "they": they,
        "their": their,
        "pitch": PITCH[attributes["person"]],
        "hair_phrase": f"{hair} hair in a bun" if style == "bun" else f"{style} {hair} hair",
        "glasses": "glasses" if attributes["glasses"] == "glasses" else "no glasses",
        "wall": WALL_WORDS.get(attributes["wall"], attributes["wall"]),
    }
    body = BODIES[phrasing % len(BODIES)].format(**words)
    body = re.sub(r"(^|[.] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), body)
    speaker = f"a {attributes['person']} with {hair} hair, {attributes['language']}"
    return f'{body}\n\nDialogue:\n<{speaker}>: "{line}"\n\nBackground Sound:\n{NO_SOUND}'


def split_words(text):
    """Split a prompt into words and signs as a word-level tokenizer should: no spaces, all else kept."""
    return re.findall(r"[A-Za-z]+|[^A-Za-z\s]", text)


def spoken_line(caption):
    """The syllables a prompt asks for: the quoted line of its dialogue part. Returns a list of names."""
    dialogue = caption.split("Dialogue:", 1)[-1]
    found = re.search(r'>:\s*"([^"]*)"', dialogue)
    return [word for word in found.group(1).split() if word in SYLLABLES] if found else []


def vocabulary():
    """All words and signs that captions can hold, sorted (about 120)."""
    choices = {**SCENE_CHOICES, "language": tuple(PROSODY), "pace": tuple(PACES)}
    words = set(SYLLABLES)
    base = {name: values[0] for name, values in choices.items()}
    for name, values in choices.items():
        for value in values:
            for phrasing in range(len(BODIES)):
                words.update(split_words(make_caption(base | {name: value}, SYLLABLES, phrasing)))
    return sorted(words)
