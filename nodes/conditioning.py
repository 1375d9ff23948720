"""Nodes that make prompts and text conditions."""

import logging

from comfy_api.latest import io

from ..magihuman_core.errors import InputError, shown
from ..magihuman_core.text.prompt import (
    DEFAULT_NEGATIVE_PROMPT,
    LANGUAGES,
    NO_BACKGROUND_SOUND,
    build_prompt,
    check_prompt,
    check_text,
    split_line,
    text_lines,
)
from ..magihuman_core.text.script import as_segments, parse_script
from .adapter.clip import encode_script, encode_text

CATEGORY = "MagiHuman/conditioning"
EXAMPLE = (
    "A young woman with short dark hair and a green coat sits at a wooden table in a bright kitchen, calm and "
    "friendly. She looks into the camera, lifts her eyebrows, smiles, and her lips open as she says in a warm, "
    'lively voice: "Good morning, and welcome!" Then she closes her lips, nods and keeps smiling. The camera stands '
    "still at the height of her eyes; soft daylight falls from the left, and the background is slightly out of focus."
)
EXAMPLE_DIALOGUE = "young woman in a green coat, English: Good morning, and welcome!"
EXAMPLE_SCRIPT = """4 A woman with short dark hair sits in a bright kitchen and says: "Good morning!"
4 The woman smiles, leans forward and says: "I have news for you."
"""
NEGATIVE_TIP = (
    "What the base model is led away from: picture, sound, and delivery of speech. If you delete one "
    "of the three, that kind of flaw comes back. The distilled and super-resolution models do not use "
    "it."
)
log = logging.getLogger(__name__)


class MagiHumanPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanPrompt",
            display_name="MagiHuman Prompt",
            category=CATEGORY,
            description="Puts a prompt into the three parts MagiHuman was trained on, and says what could be better.",
            search_aliases=["dialogue", "speech", "script", "magihuman prompt"],
            inputs=[
                io.String.Input("body", multiline=True, dynamic_prompts=True, default=EXAMPLE, tooltip=(
                    "150 to 200 English words in one paragraph: who it is and how they feel; face and lips in order "
                    "of time; the spoken line in quotation marks where it is said, with its tone and pace; a still "
                    "camera and the light. Short prompts visibly cost quality; large movements do not work.")),
                io.String.Input("dialogue", multiline=True, default=EXAMPLE_DIALOGUE, tooltip=(
                    "One line for each thing that is said, as 'short description, Language: words'. Languages: "
                    f"{', '.join(LANGUAGES)}. The words stand in the body too, in their own language. Leave it "
                    "empty when nobody speaks.")),
                io.String.Input("background_sound", default=NO_BACKGROUND_SOUND, tooltip=(
                    "The most prominent sound behind the voice, such as 'rain on a window'.")),
            ],
            outputs=[
                io.String.Output(display_name="prompt"),
                io.String.Output(display_name="remarks", tooltip="What departs from the trained form; empty if "
                                                                 "nothing."),
            ],
        )

    @classmethod
    def execute(cls, body, dialogue, background_sound) -> io.NodeOutput:
        prompt = build_prompt(body, parse_dialogue(dialogue), background_sound)
        remarks = check_prompt(prompt)
        for remark in remarks:
            log.warning("MagiHuman Prompt: %s", remark)
        return io.NodeOutput(prompt, "\n".join(remarks))


def parse_dialogue(text: str) -> list[tuple[str, str, str]]:
    """Lines 'speaker, Language: words' -> (speaker, language, words). Raises InputError."""
    entries = []
    for number, line in enumerate(filter(None, map(str.strip, text_lines(text))), 1):
        entry = split_line(line)
        if entry is None:
            raise InputError(f"Dialogue line {number} reads {shown(line)}, expected 'short description, Language: "
                             "words'.")
        entries.append(entry)
    return entries


class MagiHumanTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanTextEncode",
            display_name="MagiHuman Text Encode",
            category=CATEGORY,
            description="Encodes a prompt and the negative prompt. Text beyond 640 tokens is cut off.",
            search_aliases=["clip text encode", "prompt", "negative prompt", "magihuman"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Load MagiHuman Text Encoder."),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip=(
                    "What is to be seen and heard; MagiHuman Prompt puts it into the right form.")),
                io.String.Input("negative", multiline=True, default=DEFAULT_NEGATIVE_PROMPT, advanced=True,
                                tooltip=NEGATIVE_TIP),
            ],
            outputs=[io.Conditioning.Output(display_name="positive"), io.Conditioning.Output(display_name="negative")],
        )

    @classmethod
    def execute(cls, clip, prompt, negative) -> io.NodeOutput:
        check_text(prompt)
        if negative.strip():
            check_text(negative, "negative prompt")
        return io.NodeOutput(encode_text(clip, prompt), encode_text(clip, negative))


class MagiHumanScript(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanScript",
            display_name="MagiHuman Script",
            category=CATEGORY,
            description="Encodes a prompt for each part of a long clip, for MagiHuman Windows: each window follows the "
                        "part in which its middle lies.",
            search_aliases=["prompt schedule", "prompt travel", "storyboard", "segments", "script", "magihuman"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Load MagiHuman Text Encoder."),
                io.String.Input("script", multiline=True, default=EXAMPLE_SCRIPT, tooltip=(
                    "One line for each part: its seconds, and then its prompt; or JSON. Empty lines, and those that "
                    "begin with #, are passed over.")),
                io.String.Input("negative", multiline=True, default=DEFAULT_NEGATIVE_PROMPT, advanced=True,
                                tooltip=NEGATIVE_TIP),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Float.Output(display_name="seconds",
                                tooltip="Of all parts together, for Empty MagiHuman Latent."),
            ],
        )

    @classmethod
    def execute(cls, clip, script, negative) -> io.NodeOutput:
        segments = as_segments(parse_script(script, "script"))
        if negative.strip():
            check_text(negative, "negative prompt")
        return io.NodeOutput(encode_script(clip, segments), encode_text(clip, negative),
                             sum(segment.seconds for segment in segments))


NODES = [MagiHumanPrompt, MagiHumanTextEncode, MagiHumanScript]
