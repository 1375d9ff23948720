"""A jobs file: a line of JSON for each clip, with the options of the command that makes it."""

import argparse
import copy
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from ...atomic import remove_leftovers
from ...errors import InputError, did_you_mean, shown
from ..edits import add_dub, add_extend, add_retake
from ..explain import DetailedError
from ..generate import add_generate, check_options, for_seeds
from ..options import change_inputs, inputs_of, model_options, read_whole
from ..parser import Parser

LARGEST = 1 << 28  # bytes of a jobs file
LATENTS = ".safetensors"
PAGE, MANIFEST, THUMBNAILS = "index.html", "manifest.json", "thumbnails"  # beside the clips
LONGEST_NAME = 255  # bytes of a file's name, on all usual systems


@dataclass(frozen=True)
class Job:
    """One clip to be made."""

    line: int  # of the jobs file
    name: str  # of the clip, within the folder of the batch
    folder: Path
    arguments: argparse.Namespace  # of the command, as the command line would have parsed them; paths are absolute

    @property
    def out(self) -> Path:
        return self.folder / self.name

    @property
    def outputs(self) -> list[Path]:
        """All files that the command writes."""
        latents = getattr(self.arguments, "save_latents", None)
        return [self.out] if latents is None else [self.out, Path(latents)]

    @property
    def thumbnail(self) -> Path:
        """The clip's small picture."""
        return self.folder / THUMBNAILS / PurePosixPath(self.name).with_suffix(".jpg")

    def clear_leftovers(self) -> None:
        """Remove half a file, where a process that wrote one was killed."""
        for folder in {path.parent for path in (*self.outputs, self.thumbnail)}:
            remove_leftovers(folder)


def read_jobs(file: str, folder: Path, given: argparse.Namespace) -> list[Job]:
    """The jobs of a file in their order. A line with several seeds is a job for each.

    folder: where the clips go. given: what the command line says of models, for lines that do not. Paths to read are
    relative to the file, those to write to the folder. Raises DetailedError, which names all lines that cannot be used.
    """
    lines = read_whole(file, "jobs file", LARGEST).split("\n")  # splitlines would part JSON at odd characters, too
    parsers, defaults = line_parsers(), given_models(given)
    jobs: list[Job] = []
    faults: dict[str, list[int]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            arguments = parse_line(line, parsers, defaults, Path(file).absolute().parent)
            if arguments.command == "generate":
                check_options(arguments)
            jobs += _jobs_of(arguments, number, folder)
        except InputError as error:
            faults.setdefault(str(error), []).append(number)
    for number, fault in _conflicts(jobs):
        faults.setdefault(fault, []).append(number)
    refuse(file, faults)
    return jobs


def refuse(file: str, faults: Mapping[str, list[int]]) -> None:
    """Raise DetailedError where there are faults. faults: what is wrong, and in which lines."""
    if not faults:
        return
    numbers = {number for numbers in faults.values() for number in numbers}
    told = sorted(faults.items(), key=lambda item: item[1])
    raise DetailedError(f"{file}: {len(numbers)} {'line' if len(numbers) == 1 else 'lines'} cannot be used, see above. "
                        "Nothing was made; correct the file.",
                        [f"{lines_in_words(numbers)}: {fault}" for fault, numbers in told])


class LineParser(Parser):
    """Raises InputError instead of ending the program."""

    def error(self, message: str) -> NoReturn:
        raise InputError(self.with_suggestion(message))


def line_parsers() -> dict[str, LineParser]:
    """The parser of each command that a job may be of: the command line's own, but that models are given once."""
    commands = LineParser().add_subparsers()
    nothing = argparse.ArgumentParser(add_help=False)
    for add in (add_generate, add_dub, add_extend, add_retake):
        add(commands, nothing)
    for parser in commands.choices.values():
        for action in parser._actions:
            action.required = action.required and action.dest != "models"
    return dict(commands.choices)


def parse_line(line: str, parsers: Mapping[str, LineParser], defaults: Mapping[str, Any],
               base: Path) -> argparse.Namespace:
    """The arguments of a job, with absolute paths to read. defaults: for options that the line has not.

    Raises InputError.
    """
    fields = _read_object(line)
    command = fields.pop("command", "generate")
    if command not in tuple(parsers):
        raise InputError(f"command is {shown(command)}, expected {', '.join(parsers)}"
                         f"{did_you_mean(str(command), parsers)}")
    parser = parsers[command]
    arguments = parser.parse_args(list(_tokens(fields, command, parser)))
    arguments.command = command
    named = {key.replace("-", "_") for key in fields}
    for name, value in defaults.items():
        if name not in named:
            setattr(arguments, name, copy.copy(value))
    if arguments.models is None:
        raise InputError("models is missing. Give it to the line, or to all as --models")
    if "out" not in fields:
        arguments.out = None  # the command's default is one name for all
    if "models" in named and arguments.models != "demo":
        arguments.models = str(base / arguments.models)
    vars(arguments).update(change_inputs(arguments, partial(_absolute, base)))
    return arguments


def given_models(given: argparse.Namespace) -> dict[str, Any]:
    """What the command line of the batch says of models, with absolute paths: workers have another folder."""
    found = {name: value for name, default in model_options().items() if (value := getattr(given, name)) != default}
    if found.get("models", "demo") != "demo":
        found["models"] = str(Path(found["models"]).absolute())
    changed = change_inputs(argparse.Namespace(**{"part": [], "lora": [], **found}), partial(_absolute, Path.cwd()))
    return {**found, **{name: changed[name] for name in ("part", "lora") if name in found}}


def lines_in_words(numbers: list[int]) -> str:
    """Such as "lines 3, 5-9"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    words = ", ".join("-".join(map(str, run)) for run in runs)
    return f"{'line' if len(set(numbers)) == 1 else 'lines'} {words}"


def _read_object(line: str) -> dict[str, Any]:
    """The object that a line is. Raises InputError."""
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [key.replace("-", "_") for key, _ in pairs]
        if repeated := [key for number, key in enumerate(names) if key in names[:number]]:
            raise InputError(f"has {shown(repeated[0])} twice")
        return dict(pairs)

    try:
        found = json.loads(line, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON ({error.msg} at character {error.pos + 1})") from None
    except RecursionError:
        raise InputError("is nested too deeply") from None
    except InputError:
        raise
    except ValueError:  # a number with thousands of digits
        raise InputError("holds a number that is too long") from None
    if not isinstance(found, dict):
        raise InputError(f'is {shown(found)}, expected an object such as {{"prompt": "...", "seed": 1}}')
    return {name: value for name, value in found.items() if value is not None}


def _tokens(fields: Mapping[str, Any], command: str, parser: LineParser) -> Iterator[str]:
    """What a person would have typed for these fields."""
    actions = {action.option_strings[-1].lstrip("-") if action.option_strings else action.dest: action
               for action in parser._actions if action.dest != "help"}
    operands = []
    for key, value in fields.items():
        name = key.replace("_", "-")
        action = actions.get(name)
        if action is None:
            raise InputError(f"{command} has no option {key!r}{did_you_mean(name, actions)}")
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise InputError(f"{key} is {shown(value)}, expected true or false")
            yield from [f"--{name}"] if value else []
        elif not action.option_strings:
            operands.append(_text(key, value))
        elif isinstance(action, argparse._AppendAction):  # may be given several times: a list, or {"0.5": "a.png"}
            if isinstance(value, dict):
                mark = "=" if "=" in str(action.metavar) else ":"  # as in T=FILE and FILE[:STRENGTH]
                value = [f"{_text(key, left)}{mark}{_text(key, right)}" for left, right in value.items()]
            yield from (f"--{name}={_text(key, part)}" for part in (value if isinstance(value, list) else [value]))
        else:  # such as an ellipse: [0.5, 0.65, 0.4, 0.3]
            parts = value if isinstance(value, list) else [value]
            yield f"--{name}={','.join(_text(key, part) for part in parts)}"
    yield from ["--", *operands] if operands else []


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{key} is {shown(value)}, expected text or a number")
    text = str(value)
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{key} holds characters that no file and no text can have")
    return text


def _jobs_of(arguments: argparse.Namespace, line: int, folder: Path) -> Iterator[Job]:
    """A job for each seed of a line."""
    suffix = ".wav" if getattr(arguments, "audio_only", False) else ".mp4"
    out = _name(f"{line:04d}{suffix}" if arguments.out is None else arguments.out, "out", suffix)
    latents = getattr(arguments, "save_latents", None)
    seeds = getattr(arguments, "seeds", None)
    names = for_seeds(out, seeds)
    kept = [None] * len(names) if latents is None else for_seeds(_name(latents, "save_latents", LATENTS), seeds)
    for name, seed, file in zip(names, [arguments.seed] if seeds is None else seeds, kept, strict=True):
        for path in (name, file):
            if path is not None and max(len(os.fsencode(part)) for part in path.parts) > LONGEST_NAME:
                raise InputError(f"{shown(path.as_posix())} is longer than {LONGEST_NAME} bytes, which no file's name "
                                 "may be")
        single = copy.copy(arguments)
        changed = {"out": str(folder / name), "seed": seed, "seeds": None, "save_latents": file and str(folder / file)}
        vars(single).update({option: value for option, value in changed.items() if option in arguments})
        yield Job(line, name.as_posix(), folder, single)


def _name(name: str, option: str, suffix: str) -> str:
    """A file's name within the folder of the batch. Raises InputError."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ":" in name or ".." in path.parts or path.suffix.lower() != suffix:
        raise InputError(f"{option} is {name!r}, expected a name within the batch's folder that ends in {suffix}")
    return str(path)


def _conflicts(jobs: list[Job]) -> Iterator[tuple[int, str]]:
    """(line, fault) where two jobs write one file, one's folder is a file, or one writes what a job reads."""
    written: dict[str, Job] = {}
    for job in jobs:
        for output in job.outputs:
            other = written.setdefault(_key(output), job)
            if other is not job:
                yield job.line, f"{output.relative_to(job.folder).as_posix()} is written by line {other.line}, too"
    own = {_key(job.folder / name) for job in jobs[:1] for name in (PAGE, MANIFEST)}
    for job in jobs:
        for output in job.outputs:
            for folder in output.relative_to(job.folder).parents[:-1]:
                key, name = _key(job.folder / folder), output.relative_to(job.folder).as_posix()
                if key in own or key in written:
                    whose = "of the batch" if key in own else f"that line {written[key].line} writes"
                    yield job.line, f"{name} lies in {folder.as_posix()}, a file {whose}"
    for job in jobs:
        written.setdefault(_key(job.thumbnail), job)
    for job in jobs:
        for file in inputs_of(job.arguments):
            writer = written.get(_key(Path(file)))
            if writer is not None:
                yield job.line, (f"{file} is read here, but line {writer.line} writes it. Put what depends on a clip "
                                 "into a second jobs file")


def _key(path: Path) -> str:
    """One for all names of a file: links are followed, and case makes no difference, as on some systems."""
    return os.path.realpath(path).casefold()


def _absolute(base: Path, file: str) -> str:
    return str(base / file)
