"""The built-in demo told apart from the released model: what to say of wishes that it cannot fulfil."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..checkpoint.json_file import read_json
from ..errors import CheckpointError
from ..loading.folder import DEMO, ModelFolder
from ..recipes import DEMO_SIZES
from ..weights.dit_keys import network_config
from ..weights.open import open_checkpoint
from ..weights.text_encoder_keys import encoder_keys

MAX_TOKENIZER = 100_000_000  # bytes; the demo's has two thousand
SHOWN = 8  # words that are named
# Words that carry no content of their own, and those of the form of a prompt.
FORM = re.findall(r"\w+", """
    a an the and with without of in on at to from is are as it its his her their who that this no not front
    wears wearing has person happily says saying say clear voice lips lip open opens close closes every syllable
    syllables camera static shot soft light dialogue background sound prominent he she they""")


def remarks(models: ModelFolder, prompts: Sequence[str], *, picture: bool, size: tuple[int, int],
            large: tuple[int, int] | None) -> Iterator[str]:
    """What a user of the demo should know of a wish that it cannot fulfil; nothing for other models."""
    if not models.is_demo:
        return
    unknown = unknown_words(DEMO / "text_encoder/tokenizer.json", " ".join(prompts))
    if unknown:
        more = ", ..." if len(unknown) > SHOWN else ""
        yield f"The demo does not know these words, and passes them over: {', '.join(unknown[:SHOWN])}{more}."
    if picture:
        yield "The demo knows its own drawn people only: the face of a photograph is not kept."
    if size not in DEMO_SIZES or large not in (None, (2 * size[0], 2 * size[1])):
        known = ", ".join(f"{width}x{height}" for width, height in DEMO_SIZES)
        yield f"The demo was trained on {known}, and twice that after super-resolution: other sizes look worse."


def unknown_words(tokenizer: Path, text: str) -> list[str]:
    """Words of a prompt that a tokenizer of single words has no entry for, in their order; [] for any other one."""
    content = read_json(tokenizer, MAX_TOKENIZER)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("type") != "WordLevel":
        return []
    known = {*model.get("vocab", ()), *FORM}
    return list(dict.fromkeys(word for word in re.findall(r"[^\W\d_]+", text.lower()) if word not in known))


def check_same_model(models: ModelFolder, role: str) -> None:
    """Raise CheckpointError where network and text encoder are of two models, such as the demo's with the real one's.

    Only headers are read.
    """
    takes = network_config(open_checkpoint(models[role], "network")).text_channels
    encoder = encoder_keys(open_checkpoint(models["text_encoder"], "text_encoder"))
    if "encoder.norm.weight" not in encoder:
        return  # which its loader will say
    gives = encoder.shape("encoder.norm.weight")[0]
    if takes != gives:
        raise CheckpointError(f"{models['text_encoder']}: this text encoder gives {gives} numbers for each token, but "
                              f"the network takes {takes}. They are of different models, as the demo's and the real "
                              "ones are: take all parts from one model.")
