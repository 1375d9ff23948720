"""Options and arguments, legal and not, in any mixture: of the command line as its parser lists them, and in Python."""

import argparse
import inspect
import math
import os
import random
from pathlib import Path

import torch

from magihuman_core.cli.program import build_parser
from magihuman_core.errors import CheckpointError, InputError

from .judge import Case
from .workshop import SMALL, Workshop, command

NAN, INF = math.nan, math.inf
INTEGERS = ["0", "1", "2", "3", "-1", "5", "31", "32", "64", "96", "1000000000", str(2**63), str(2**64), "-0", "1e3",
            "2.5", "nan", "", " ", "x", "\u0663", "1" * 400]
FLOATS = ["0.2", "0.4", "0.04", "0", "-1", "nan", "inf", "-inf", "1e-300", "1e300", "1e400", "0x1", "", "x", "1_0"]
WORDS = ["", " ", "x", "demo", "auto", "540p", "64x64", "96x32", "0x0", "99999999x32", "cpu", "cuda:99", "meta",
         "mps", "cpu:1", "last=x", "1,2", "1-2", "3-1", "0.5,0.5,0.3,0.2", "nan,0,1,1", "\udc80", "a\x00b", "..", "/",
         "-", "~", "\u202egpj.exe", "%s%n{0}", "A happy woman says: \"ma so mi\"", "network=x", "=", "caf\u00e9",
         "a" * 400]
TENSORS = {
    "nan": torch.full((2, 8000), NAN), "inf": torch.full((2, 8000), INF), "int16": torch.ones(8000, dtype=torch.int16),
    "empty": torch.zeros(2, 0), "scalar": torch.tensor(0.5), "five": torch.zeros(1, 1, 1, 1, 1),
    "image": torch.rand(1, 40, 72, 3), "sound": torch.randn(2, 8000) / 9, "bool": torch.ones(40, 72, dtype=torch.bool),
    "complex": torch.ones(2, 8000, dtype=torch.complex64), "meta": torch.ones(2, 8000, device="meta"),
}
VALUES = [None, True, False, 0, 1, 2, -1, 3.5, NAN, INF, -INF, 10**30, "", "x", "demo", b"x", [], {}, (), object,
          0.2, 0.4, 64, 96, "540p", (64, 64), (0, -1), "distilled", Path("/nowhere"), 1j]
MAKING = ("width", "height", "steps", "sr_steps", "mode", "upscale", "negative", "window", "overlap")
# What would honestly take long, drawn within these.
SHORT = {"seconds": ["0.2", "0.4", "0.04"], "steps": ["1", "2", "0", "-1"], "sr_steps": ["1", "2", "0"]}


def options(workshop: Workshop, chance: random.Random) -> Case:
    """A command of the command line with some of its options."""
    folder = workshop.case_folder()
    outs = [folder / "out" / name for name in ("a.mp4", "b.mp4", "c.safetensors", "d.wav", "e.png", "a.png",
                                               "b.png", "a_1.mp4", "a_2.mp4", "b_1.mp4", "b_2.mp4", "c_1.safetensors",
                                               "c_2.safetensors", "d_1.wav", "d_2.wav")]
    (folder / "in").mkdir()
    for file in workshop.media.iterdir():
        os.link(file, folder / "in" / file.name)
    files = [*map(str, sorted((folder / "in").iterdir())), *map(str, outs[:5]), str(folder), str(folder / "none.png"),
             "/dev/zero", "/dev/null", "/dev/full/x.mp4", "", "a\x00b", str(folder / ("n" * 300)), "\udc80.png"]
    parser = build_parser()
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    name = chance.choice([key for key in commands if key != "demo"])
    argv: list[str] = [name]
    written: set[str] = set()
    for action in commands[name]._actions:
        wanted = action.required or not action.option_strings
        if action.dest in ("help", "verbose") or not (wanted or chance.random() < 0.12):
            continue
        value = _value(action, chance, files, outs, str(workshop.models))
        if action.dest in ("out", "target", "save_latents"):
            written.add(value)
        argv += [value] if not action.option_strings else [action.option_strings[-1], *([value] * (action.nargs != 0))]
    if name in ("generate", "dub", "retake", "extend", "live"):
        known = {option for action in commands[name]._actions for option in action.option_strings}
        small = [pair for pair in zip(SMALL[::2], SMALL[1::2], strict=True) if pair[0] in known and pair[0] not in argv]
        argv += [word for pair in small for word in pair]
    if name not in ("inspect", "convert") and "--out" not in argv:
        argv += ["--out", str(outs[0])]
    # What the command does not read may be replaced.
    outs += [Path(value) for value in written if value.startswith(str(folder / "in"))
             and value.endswith((".mp4", ".safetensors", ".wav")) and argv.count(value) == 1]
    return Case(command(*argv), folder, f"magihuman {' '.join(map(ascii, argv))[:1500]}", outputs=outs,
                problems=name == "inspect", writes=name not in ("inspect",))


def _value(action: argparse.Action, chance: random.Random, files: list[str], outs: list[Path], models: str) -> str:
    if action.dest in SHORT:
        return chance.choice(SHORT[action.dest] + [value for value in FLOATS if not _plain(value)])
    if action.dest == "models":
        return models if chance.random() < 0.8 else chance.choice([*files, "demo"])
    if action.dest in ("out", "target", "save_latents"):
        return str(chance.choice(outs[:5])) if chance.random() < 0.7 else chance.choice(files)
    if action.choices and chance.random() < 0.8:
        return str(chance.choice(list(action.choices)))
    if action.type is int:
        return chance.choice(INTEGERS)
    if action.type is float:
        return chance.choice(FLOATS)
    if action.metavar in ("FILE", "CLIP", "LATENTS", "SOURCE", "PATH"):
        return chance.choice(files if chance.random() < 0.9 else WORDS)
    return chance.choice(WORDS if chance.random() < 0.8 else files)


def _plain(text: str) -> bool:
    """Whether a number may be legal, and the work it asks for be long."""
    try:
        return 0 < float(text) < 1e7
    except ValueError:
        return False


def python(workshop: Workshop, chance: random.Random) -> Case:
    """A method of the pipeline with values of any type, NaN among them."""
    folder = workshop.case_folder()
    method = chance.choice(["generate", "generate_audio", "dub", "retake", "extend"])
    clip = workshop.media / "a.mp4"
    usual = {"seconds": 0.2, "width": 64, "height": 32, "steps": 1, "sr_steps": 1, "prompt": "hello there",
             "clip": clip, "audio": None if "generate" in method else workshop.media / "a.wav", "start": 0.0,
             "end": 0.12}
    odd = {place: chance.choice([*VALUES, *TENSORS.values(), (TENSORS["nan"], 16000), (TENSORS["int16"], 16000),
                                 (TENSORS["sound"], chance.choice([0, -1, NAN, 10**9, 16000, "x"])),
                                 [TENSORS["image"]], {0.0: TENSORS["image"]}, {NAN: "x"},
                                 workshop.media / chance.choice(["a.png", "a.wav", "a.mp4", "lora.safetensors"])])
           for place in range(40) if chance.random() < 0.12}

    def run() -> int:
        from magihuman_core.pipeline.pipeline import MagiHumanPipeline

        try:
            pipeline = MagiHumanPipeline.from_folder(workshop.models, device="cpu")
            function = getattr(pipeline, method)
            listed = inspect.signature(function).parameters.values()
            flags = {parameter.name for parameter in listed if isinstance(parameter.default, bool)}
            names = [parameter.name for parameter in listed if parameter.kind is not parameter.VAR_KEYWORD]
            if len(names) < len(listed):  # what all methods take
                sizes = ("width", "height", "upscale", "sr_steps") if method == "generate_audio" else ()
                names += [name for name in MAKING if name not in (*names, *sizes)]
            arguments = {name: usual[name] for name in names if usual.get(name) is not None}
            arguments |= {names[place]: value for place, value in odd.items()
                          if place < len(names) and names[place] not in ("progress", "lazy")
                          and not (names[place] in flags and isinstance(value, torch.Tensor))}  # torch's own error
            made = function(**arguments)
            if hasattr(made, "save"):
                made.save(folder / "a.mp4")
            return 0
        except (InputError, CheckpointError) as error:
            print(f"magihuman: {error}")
            return 2

    return Case(run, folder, f"{method}({', '.join(f'{key}: {_short(value)}' for key, value in odd.items())})",
                outputs=[folder / "a.mp4"], writes=False)


def _short(value: object) -> str:
    """A value in a few words: of tensors, what they are."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_short, value))})"[:60]
    return next((name for name, tensor in TENSORS.items() if tensor is value), ascii(value)[:60])


KINDS = {"options": options, "python": python}
