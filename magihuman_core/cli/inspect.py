"""`magihuman inspect`: what a weight file or a folder is, and what a clip needs that somebody has in mind."""

import argparse
from pathlib import Path

from .console import Exit, plain


def add_inspect(commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "inspect", parents=[common], help="explain weight files, or say what is missing for a clip",
        description="Say what a weight file, or each weight file of a folder, is: kind, role, layout, size, and "
                    "problems. With --for: what is there for a clip, what is missing and where to get it, what fits on "
                    "this machine's card, and what to set. Exit code 1: something is wrong or missing.")
    parser.set_defaults(run=inspect)
    parser.add_argument("path", metavar="PATH", nargs="?", help="file, index file or folder, or: demo (default with "
                        "--for: ComfyUI's models folder, where this lies in ComfyUI)")
    parser.add_argument("--for", dest="wish", metavar="WISH", help="words for a clip, of: text, picture, voice, 540p, "
                        "1080p, upright, extend, base")
    parser.add_argument("--memory", type=float, metavar="GB", help="with --for: plan for a card with so much memory "
                        "(default: the one that is here)")
    parser.add_argument("--read-all", action="store_true", help="read every tensor, to find damaged values")


def inspect(arguments: argparse.Namespace) -> int:
    """Explain weights; gives 1 where something is wrong or missing."""
    from ..errors import InputError

    if arguments.wish is not None:
        return _check(arguments)
    if arguments.path is None:
        raise InputError("inspect needs a file or folder, or --for with words for a clip, such as --for \"picture "
                         "voice\".")
    from ..loading.folder import DEMO
    from ..tools.inspect import describe

    text = describe(DEMO if arguments.path == "demo" else arguments.path, read_all=arguments.read_all,
                    details=arguments.verbose)
    print(plain(text))
    return Exit.PROBLEMS if "\n  problem " in text else Exit.DONE


def _check(arguments: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..loading.ready import check
    from ..loading.wishes import parse_wish

    wish = parse_wish(arguments.wish)
    if arguments.memory is not None and not 1 <= arguments.memory <= 10_000:
        raise InputError(f"--memory is {arguments.memory:g}, expected the GB of a graphics card, such as 16.")
    folder = comfyui_models() if arguments.path is None else arguments.path
    lines, complete = check(wish, folder, arguments.memory)
    print(plain("\n".join(lines)))
    return Exit.DONE if complete else Exit.PROBLEMS


def comfyui_models() -> Path | None:
    """The folder of models of the ComfyUI in whose custom_nodes this package lies; None elsewhere."""
    nodes = Path(__file__).absolute().parents[3]
    models = nodes.parent / "models"
    return models if nodes.name == "custom_nodes" and models.is_dir() else None
