"""`magihuman convert`: weights as one file, in another dtype or layout."""

import argparse

from ..recipes import RECIPES
from ..sizes import byte_size
from .console import plain


def add_convert(commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "convert", parents=[common], help="write weights as one file, in another dtype or layout",
        description="Write any weight file or folder of MagiHuman as one .safetensors file. Memory stays small "
                    "however large the model is, and the file appears only when it is whole.")
    parser.set_defaults(run=convert)
    parser.add_argument("source", metavar="SOURCE", help="file, index file or folder, in any known layout")
    parser.add_argument("target", metavar="TARGET", help="the .safetensors file to write; an existing one is replaced")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32", "fp8", "int8"),
                        help="default: as stored, and bf16 for what is quantized")
    parser.add_argument("--layout", choices=("official", "split"),
                        help="of a network (default: official; split for fp8 and int8)")
    parser.add_argument("--role", choices=tuple(RECIPES),
                        help="of a network, written into the file (default: what its name tells)")


def convert(arguments: argparse.Namespace) -> int:
    """Convert weights."""
    from tqdm import tqdm

    from ..tools.convert import convert as write

    with tqdm(unit="B", unit_scale=True, unit_divisor=1024, desc="converting", leave=False) as bar:
        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        path = write(arguments.source, arguments.target, dtype=arguments.dtype, layout=arguments.layout,
                     role=arguments.role, progress=progress)
    print(plain(f"{path}: {byte_size(path.stat().st_size)} written"))
    return 0
