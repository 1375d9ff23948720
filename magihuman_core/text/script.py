"""A script: what is seen and heard in each part of a clip, one prompt after the other."""

import json
import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import InputError, shown
from ..sizes import AUDIO_PER_FRAME, FPS, MAX_SECONDS
from .prompt import check_text, text_lines

TOLERANCE = 0.16  # seconds by which parts may miss the clip's length: one latent frame

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segment:
    """A part of a clip and its prompt."""

    seconds: float
    prompt: str


def parse_script(text: str, name: str) -> list[Segment]:
    """A script's parts: lines of JSON, {"seconds": 4, "prompt": "..."}, or of plain text, seconds and then the prompt.

    Empty lines, and in plain text those that begin with #, are passed over. name: of the file, for messages.
    Raises InputError.
    """
    segments = []
    for number, line in enumerate(text_lines(text), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            segments.append(_json_line(line, name, number) if line.startswith("{") else _text_line(line, name, number))
    if not segments:
        raise InputError(f"{name}: holds no part. Write a line such as: 4 A woman says hello.")
    return segments


def as_segments(prompt: str | Sequence[tuple[float, str]] | Sequence[Segment]) -> list[Segment]:
    """One prompt for a whole clip, or (seconds, prompt) of each part. Raises InputError for lengths that are none."""
    if isinstance(prompt, str):
        return [Segment(math.inf, check_text(prompt))]
    try:
        segments = [part if isinstance(part, Segment) else Segment(*part) for part in prompt]
    except TypeError:
        raise InputError("The prompt is neither a text nor a list of (seconds, text) of each part. Give one of them."
                         ) from None
    if not segments:
        raise InputError("The prompt is an empty list. Give a text, or (seconds, text) of each part.")
    for number, part in enumerate(segments, 1):
        check_text(part.prompt)
        seconds = part.seconds
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MAX_SECONDS:
            raise InputError(f"Part {number} of the script lasts {shown(seconds)} seconds, expected a length above 0.")
    return segments


def check_length(segments: Sequence[Segment], seconds: float, what: str) -> None:
    """Raise InputError unless a script of several parts lasts as long as its clip. what: says the clip's length."""
    total = sum(part.seconds for part in segments)
    if math.isfinite(total) and abs(total - seconds) > TOLERANCE:
        raise InputError(f"The parts of the script last {total:g} s together, but {what} {seconds:g} s. "
                         "Change the seconds of its parts until they add up.")


def segment_at(segments: Sequence[Segment], frame: float) -> int:
    """Which part a place in the clip lies in. frame: in latent frames, such as the middle of a window."""
    seconds, end = frame * AUDIO_PER_FRAME / FPS, 0.0
    for number, part in enumerate(segments):
        end += part.seconds
        if seconds < end:
            return number
    return len(segments) - 1


def warn_of_unused_parts(segments: Sequence[Segment], middles: Iterable[float]) -> None:
    """Log which parts no window follows, as each follows that in which its middle lies. middles: in latent frames."""
    used = {segment_at(segments, middle) for middle in middles}
    unused = [str(number) for number in range(1, len(segments) + 1) if number - 1 not in used]
    if unused:
        log.warning("No window has its middle in part %s of the script, so it is not used: choose windows that are no "
                    "longer than its parts, or longer parts.", ", ".join(unused))


def _json_line(line: str, name: str, number: int) -> Segment:
    wrong = InputError(f"{name}: line {number} is not of the form {{\"seconds\": 4, \"prompt\": \"...\"}}. Correct it.")
    try:
        pairs = json.loads(line, object_pairs_hook=list)  # in which a name that stands twice does so
    except (ValueError, RecursionError):
        raise wrong from None
    fields = dict(pairs)
    if sorted(key for key, _ in pairs) != ["prompt", "seconds"] or not isinstance(fields["prompt"], str):
        raise wrong
    return Segment(fields["seconds"], fields["prompt"])


def _text_line(line: str, name: str, number: int) -> Segment:
    found = re.match(r"\d+(\.\d+)?", line)
    rest = "" if found is None else line[found.end() :]
    unit = rest.lstrip()
    if unit[:1] == "s" and (unit[1:2].isspace() or unit[1:2] in (":", ",")):
        rest = unit[1:]
    mark = rest.lstrip()
    if mark[:1] in (":", ","):
        rest = mark[1:]
    example = "Write it as: 4.5 A woman says hello."
    if found is None:
        raise InputError(f"{name}: line {number} does not begin with its seconds. {example}")
    if not rest.strip():
        raise InputError(f"{name}: line {number} has seconds, but no prompt behind them. {example}")
    if not rest[:1].isspace():
        raise InputError(f"{name}: line {number} has no space behind its seconds, or a comma in them. {example}")
    return Segment(float(found[0]), rest.strip())
