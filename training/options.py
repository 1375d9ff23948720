"""Options of the training commands: their types, those that most have, and how a command ends."""

import argparse
import functools
import math
from pathlib import Path

import torch

from magihuman_core.errors import CheckpointError, InputError
from training.common import Stop

RUNS = Path(__file__).parent / "runs"


def command(main):
    """A program's `main`: what its user can mend ends it with one sentence, as Stop does, and not with a traceback."""

    @functools.wraps(main)
    def run():
        try:
            main()
        except (InputError, CheckpointError) as error:
            raise Stop(str(error)) from error
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            raise Stop(f"{name}{error.strerror or error}. Check the file and the space on its disk.") from error

    return run


def whole(least):
    """The type of an option: a whole number of at least so much that torch can hold."""

    def read(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is not possible, expected a whole number of {least} or more")
        return value

    return read


def number(text):
    """The type of an option: a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not possible, expected a number")
    return value


def positive(text):
    """The type of an option: a finite number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible, expected a number above 0")
    return value


def device(text):
    """The type of an option: a device that torch can compute on here."""
    try:
        torch.ones(1, device=text).sum().item()
    except Exception as error:  # every backend has errors of its own
        reason = " ".join(str(error).split())[:100]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here ({reason}), expected a device of this machine, "
                                         "such as cpu") from error  # fmt: skip
    return text


def add_options(parser, *, run=True, threads=True, seed=True, steps=None, rate=None, batch=None):
    """The options that most stages have; those of `fit` where steps are given. run, threads, seed: which of them."""
    if run:
        parser.add_argument("--run", type=lambda name: RUNS / name, default=RUNS / "demo",
                            help="folder of the run: a name below training/runs, or an absolute path (default demo)")
    if threads:
        parser.add_argument("--threads", type=whole(1), default=torch.get_num_threads(), help="default: all cores")
    if seed:
        parser.add_argument("--seed", type=whole(0), default=0)
    if steps is None:
        return
    parser.add_argument("--steps", type=whole(1), default=steps, help=f"of the whole stage (default {steps})")
    parser.add_argument("--minutes", type=positive, help="stop earlier, after so many minutes of this call")
    parser.add_argument("--rate", type=positive, default=rate, help="highest learning rate")
    if batch:
        parser.add_argument("--batch", type=whole(1), default=batch)
    else:
        parser.set_defaults(batch=None)
    parser.add_argument("--save-every", type=whole(1), default=500, help="steps")


def set_up(options):
    """Threads and seed as asked for; denormals only cost time."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    if "seed" in options:
        torch.manual_seed(options.seed)
