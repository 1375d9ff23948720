"""`magihuman inspect`: what a weight file or a folder is."""

import argparse


def add_inspect(commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("inspect", parents=[common], help="explain a weight file or folder",
                                 description="Say what a weight file, or each file of a folder, is: kind, "
                                             "role, layout, size, dtypes, and problems.")
    parser.set_defaults(run=inspect)
    parser.add_argument("path", metavar="PATH", help="file, index file or folder")
    parser.add_argument("--read-all", action="store_true", help="read every tensor, to find damaged values")


def inspect(arguments: argparse.Namespace) -> int:
    """Explain weights."""
    from ..tools.inspect import describe

    print(describe(arguments.path, read_all=arguments.read_all))
    return 0
