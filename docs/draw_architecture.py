"""Draw the rooms of the code and the imports between them: docs/architecture.svg.

    python docs/draw_architecture.py            write the picture
    python docs/draw_architecture.py --check    exit with 1 if the picture does not show the present code

Rooms stand on a diagonal, from the top down. An import leaves a room to the right and ends on top of a lower room,
or leaves it to the left and ends below a higher one. What breaks the order (see breaks_the_order) is red. Imports
are read with `ast`, wherever in a module they stand; nothing is imported or run.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import tomllib

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/architecture.svg"
CORE = "magihuman_core"
NODES = [["nodes"], ["nodes/adapter"]]  # on top of the core


def read_layers() -> list[list[str]]:
    """The rooms from the top down, as the first import contract has them; those of one layer are independent."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    return NODES + [layer.split(" | ") for layer in settings["contracts"][0]["layers"]]


LAYERS = read_layers()
ROOMS = [room for layer in LAYERS for room in layer]
LAYER_OF = {room: number for number, layer in enumerate(LAYERS) for room in layer}
SHOWN_AS = {"api": ("magihuman_core", "public names")}  # title and contents where the files do not say it

# Pixels.
BOX_WIDTH, BOX_HEIGHT, COLUMN, ROW = 236, 46, 44, 58
MARGIN, TOP = 16, 52
LINE_CHARS = 44  # of the small letters that fit into a box
DOWN, UP, INK, PAPER, BAND = "#5b7795", "#d01919", "#1c2733", "#ffffff", "#f2f5f8"


def room_of(parts: tuple[str, ...]) -> str | None:
    """The room of a module, given by its path from the repository's root; None: outside of the house."""
    if parts[:1] == ("nodes",):
        return "nodes/adapter" if parts[1:2] == ("adapter",) else "nodes"
    if parts[:1] != (CORE,):
        return None
    name = parts[1] if len(parts) > 1 else "api"
    return {"__main__": "cli"}.get(name, name)


def modules() -> dict[tuple[str, ...], Path]:
    """Every module of the house; a package stands under its own name."""
    found = {}
    for folder in (CORE, "nodes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[parts[:-1] if parts[-1] == "__init__" else parts] = path
    return found


def imported(module: tuple[str, ...], path: Path, known: set[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """The modules of the house that a module imports."""
    package = module if path.name == "__init__.py" else module[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:  # a module of the package, or a name inside of it
                yield (*base, alias.name) if (*base, alias.name) in known else base


def arrows(found: dict[tuple[str, ...], Path]) -> set[tuple[str, str]]:
    """(importing room, imported room)."""
    known = set(found)
    pairs = ((room_of(module), room_of(target)) for module, path in found.items()
             for target in imported(module, path, known) if target in known)
    return {(a, b) for a, b in pairs if a is not None and b is not None and a != b}


def breaks_the_order(importer: str, target: str) -> bool:
    """Whether a room imports one that is not below it."""
    return LAYER_OF[importer] >= LAYER_OF[target]


def contents(found: dict[tuple[str, ...], Path]) -> dict[str, list[str]]:
    """Names of the modules in each room; none for a room that is a single file."""
    rooms: dict[str, list[str]] = {room: [] for room in ROOMS}
    for module, path in found.items():
        room = room_of(module)
        if room not in rooms:
            sys.exit(f"{path.relative_to(ROOT)}: the room {room!r} is not among the layers in pyproject.toml. "
                     "Put it where it belongs.")
        if path.name != "__init__.py" and len(module) > 1 + (module[0] == CORE or room == "nodes/adapter"):
            rooms[room].append(module[-1])
    return rooms


def wrapped(names: list[str]) -> list[str]:
    """Names in at most two lines, the rest as dots."""
    lines = [""]
    for name in names:
        longer = f"{lines[-1]} {name}".strip()
        if len(longer) <= LINE_CHARS:
            lines[-1] = longer
        elif len(lines) == 2:
            lines[-1] = f"{lines[-1][: LINE_CHARS - 4]} ..."
            break
        else:
            lines.append(name)
    return lines


def text(x: float, y: float, words: str, size: int = 13, weight: str = "normal", anchor: str = "start",
         colour: str = INK) -> str:
    return (f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
            f'fill="{colour}">{escape(words)}</text>')


def box(room: str, names: list[str], x: int, y: int) -> Iterator[str]:
    title, summary = SHOWN_AS.get(room, (room if names else f"{room}.py", ""))
    lines = [summary] if summary else wrapped(names)
    yield (f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5" fill="{PAPER}" stroke="{INK}" '
           'stroke-width="1.2"/>')
    yield text(x + 10, y + (17 if any(lines) else 28), title, weight="bold")
    for number, line in enumerate(filter(None, lines)):
        yield text(x + 10, y + 29 + 11 * number, line, size=9)


def arrow(importer: int, target: int, left: list[int], top: list[int], wrong: bool) -> str:
    """An arrow between the rooms of these numbers in ROOMS."""
    start = top[importer] + BOX_HEIGHT // 2
    if target > importer:  # to the right, then down
        begin, column, end, tip = left[importer] + BOX_WIDTH, left[target] + BOX_WIDTH - 18, top[target], -5
    else:  # to the left, then up
        begin, column, end, tip = left[importer], left[target] + 18, top[target] + BOX_HEIGHT, 5
    colour, width = (UP, 2.2) if wrong else (DOWN, 1.2)
    return (f'<path d="M{begin} {start}H{column}V{end + tip}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
            f'<circle cx="{column}" cy="{start}" r="2.6" fill="{colour}"/>'
            f'<path d="M{column} {end}l-4 {2 * tip}h8z" fill="{colour}"/>')


def draw() -> str:
    """The picture."""
    found = modules()
    pairs, rooms = arrows(found), contents(found)
    left = [MARGIN + COLUMN * number for number in range(len(ROOMS))]
    top = [TOP + ROW * number for number in range(len(ROOMS))]
    width, height = left[-1] + BOX_WIDTH + MARGIN, top[-1] + BOX_HEIGHT + MARGIN
    wrong = {(a, b) for a, b in pairs if breaks_the_order(a, b)}

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
    ]
    for number, layer in enumerate(LAYERS):
        if number % 2 == 0:
            y = top[ROOMS.index(layer[0])] - (ROW - BOX_HEIGHT) // 2
            lines.append(f'<rect y="{y}" width="{width}" height="{ROW * len(layer)}" fill="{BAND}"/>')
    lines.append(text(MARGIN, 24, "Rooms and their imports", size=17, weight="bold"))
    lines.append(text(MARGIN, 41, "A stripe is a layer; a room imports from lower layers only. A dot in a room's row: "
                      "it imports the room that the arrow points to.", size=11))
    for a, b in sorted(pairs, key=lambda pair: (pair in wrong, ROOMS.index(pair[0]), ROOMS.index(pair[1]))):
        lines.append(arrow(ROOMS.index(a), ROOMS.index(b), left, top, (a, b) in wrong))
    for number, room in enumerate(ROOMS):
        lines += box(room, rooms[room], left[number], top[number])
    remark = f"Against the order: {len(wrong)}" if wrong else "Against the order: none"
    lines.append(text(MARGIN, height - MARGIN, remark, weight="bold", colour=UP if wrong else DOWN))
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    picture = draw()
    if sys.argv[1:] == ["--check"]:
        if not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != picture:
            sys.exit("docs/architecture.svg does not show the present code. Run: python docs/draw_architecture.py")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        PICTURE.write_text(picture, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
