"""A plot without a plotting library: pairs of bars on a logarithmic scale, as SVG."""

from collections.abc import Sequence
from math import ceil, floor, log10
from xml.sax.saxutils import escape

LEFT, WIDTH, ROW, TOP = 270, 460, 34, 34  # pixels
COLOURS = ("#8a97a6", "#2f6db5")
INK = "#1c2733"


def bars(rows: Sequence[tuple[str, float, float]], names: tuple[str, str]) -> str:
    """rows: (label, first, second), in seconds; names: of the two."""
    values = [value for _, *pair in rows for value in pair]
    low, high = floor(log10(min(values))), ceil(log10(max(values)))

    def place(value: float) -> float:
        return LEFT + WIDTH * (log10(value) - low) / (high - low)

    height = TOP + ROW * len(rows) + 24
    parts = [f'<rect width="{LEFT + WIDTH + 70}" height="{height}" fill="#ffffff"/>']
    for number, (name, colour) in enumerate(zip(names, COLOURS, strict=True)):
        parts += [f'<rect x="{LEFT + 120 * number}" y="10" width="12" height="12" fill="{colour}"/>',
                  f'<text x="{LEFT + 120 * number + 18}" y="20">{escape(name)}</text>']
    for exponent in range(low, high + 1):
        x = place(10.0**exponent)
        parts += [f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{height - 20}" stroke="#d5dbe2"/>',
                  f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{10.0**exponent:g} s</text>']
    for number, (label, *pair) in enumerate(rows):
        top = TOP + ROW * number + 4
        parts.append(f'<text x="{LEFT - 8}" y="{top + 16}" text-anchor="end">{escape(label)}</text>')
        for which, value in enumerate(pair):
            y, end = top + 12 * which, place(value)
            parts += [f'<rect x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="11" fill="{COLOURS[which]}"/>',
                      f'<text x="{end + 5:.1f}" y="{y + 10}">{value:.2f}</text>']
    style = f'font-family="sans-serif" font-size="11" fill="{INK}"'
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 70} {height}" {style}>\n'
            f"{body}\n</svg>\n")
