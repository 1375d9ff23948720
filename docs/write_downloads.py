"""Write the tables of downloads in README.md from magihuman_core/loading/downloads.json.

    python docs/write_downloads.py [--check]

A table stands between `<!-- downloads: WISH -->` (or "the rest", "originals") and `<!-- end of downloads -->`.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from magihuman_core.loading.downloads import EIGHT_BITS, ORIGINALS, Download, download, downloads, total_gb  # noqa: E402
from magihuman_core.loading.wishes import parse_wish  # noqa: E402

PAGES = (ROOT / "README.md",)
BLOCK = re.compile(r"(<!-- downloads: (.+?) -->\n).*?(<!-- end of downloads -->)", re.DOTALL)
LOADERS = {"text_encoder": "Load MagiHuman Text Encoder", "turbo_vae": "Load MagiHuman Turbo VAE",
           "video_vae": "Load MagiHuman Video VAE", "audio_vae": "Load MagiHuman Audio VAE"}
WHAT = {  # a part in words, once more than its name
    "distilled": "network that makes the clip (*distilled*: fast)", "base": "*base* network (slow, follows the prompt "
    "more closely)", "sr_540p": "network that enlarges to 540p", "sr_1080p": "network that enlarges to 1080p",
    "text_encoder": "text encoder (reads the prompt)", "turbo_vae": "Turbo VAE (makes the picture)",
    "video_vae": "Wan2.2 VAE (reads your picture)", "audio_vae": "audio VAE (reads and makes sound)"}


def table(entries: Iterable[Download]) -> str:
    entries = list(entries)
    lines = ["| what | take | from | GB | folder in `ComfyUI/models` | loader |", "|---|---|---|---|---|---|"]
    lines += [f"| {WHAT[entry.part]} | {_take(entry)} | [{entry.repository}]({entry.address})"
              f"{' (terms)' if entry.gated else ''} | {'about ' if entry.counted else ''}{entry.gb:g} | "
              f"`{entry.folder}/` | {LOADERS.get(entry.part, 'Load MagiHuman Model')} |" for entry in entries]
    return "\n".join(lines) + "\n"


def _take(entry: Download) -> str:
    if not entry.whole_folder:
        return f"`{entry.what}`"
    return f"`{entry.path}`: {entry.take or 'all files'}" if entry.path else entry.take


def block(name: str) -> str:
    """What stands between the marks."""
    if name == "the rest":
        return table(entry for entry in downloads() if entry.set == EIGHT_BITS and entry.part in ("sr_1080p", "base"))
    if name == ORIGINALS:
        return table(entry for entry in downloads() if entry.set == ORIGINALS)
    entries = [download(part, EIGHT_BITS) for part in parse_wish(name).parts]
    return f"**{total_gb(entries)} GB in all.**\n\n{table(entries)}"


def written(text: str) -> str:
    """A page with its tables as they are now."""
    return BLOCK.sub(lambda match: match[1] + block(match[2]) + match[3], text)


def main(arguments: list[str]) -> int:
    stale = [page for page in PAGES if written(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]
    if "--check" in arguments:
        print(*(f"{page.name}: its tables of downloads are not up to date" for page in stale), sep="\n")  # noqa: T201
        return bool(stale)
    for page in stale:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
