"""The page that shows all clips of a batch: index.html, with a small picture of each."""

import html
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ...atomic import whole_file
from ...errors import InputError
from .jobs import PAGE, Job
from .records import Outcome

MARK = '<meta name="generator" content="magihuman batch">'
SIDE = 160  # pixels of a thumbnail, at most
log = logging.getLogger(__name__)
STYLE = ("body{font:15px sans-serif;margin:2em}td,th{padding:.3em .8em;text-align:left;vertical-align:top}"
         "tr:nth-child(even){background:#f4f4f4}.failed{color:#b00}")


def check_page(folder: Path) -> None:
    """Raise InputError where a page of another kind would be written over."""
    path = folder / PAGE
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{path}: is not the page of a batch. Move it away, or choose another folder (--out).")


def address(name: str) -> str:
    """The relative address of a file, its characters written as addresses have them."""
    return (PurePosixPath("/") / name).as_uri().removeprefix("file:///")


def write_thumbnail(job: Job) -> None:
    """Write a small picture of a clip: the last one before its middle that stands for itself. Sound alone has none."""
    import av

    if job.out.suffix.lower() != ".mp4":
        return
    try:
        with av.open(str(job.out)) as container:
            container.seek((container.duration or 0) // 2)
            image = next(container.decode(container.streams.video[0])).to_image()
        image.thumbnail((SIDE, SIDE))
        job.thumbnail.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(job.thumbnail) as file:
            image.save(file, format="JPEG")
    except (av.FFmpegError, OSError, StopIteration, ValueError) as error:
        log.warning("%s: no small picture of it can be made (%s).", job.out, error)


def write_page(jobs: Sequence[Job], outcomes: Mapping[str, Outcome], folder: Path) -> None:
    """Write the page. jobs: in the order of the jobs file; outcomes: by name, of those that were run."""
    made = sum(not outcome.error for outcome in outcomes.values())
    failed = len(outcomes) - made
    title = f"{made} of {len(jobs)} clips" + (f", {failed} failed" if failed else "")
    rows = "\n".join(_row(job, outcomes.get(job.name)) for job in jobs)
    text = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">{MARK}<title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<table>
<tr><th>Clip</th><th>Line</th><th>Name</th><th>Made of</th><th>Result</th><th>Seconds to make</th></tr>
{rows}
</table>
</body></html>
"""
    with whole_file(folder / PAGE) as file:
        file.write(text.encode("utf-8", "replace"))


def _row(job: Job, outcome: Outcome | None) -> str:
    arguments = job.arguments
    told = arguments.prompt or arguments.prompt_file or getattr(arguments, "script", None) or arguments.clip
    made_of = html.escape(f"{arguments.command}, seed {arguments.seed}: {told}")
    small, name = "", html.escape(job.name)
    if outcome is None:
        result = "waiting"
    elif outcome.error:
        result = f'<span class="failed">{html.escape(outcome.error)}</span>'
    else:
        result = html.escape(outcome.answer.removeprefix(f"{job.out}: "))
        name = f'<a href="{address(job.name)}">{name}</a>'
        if job.thumbnail.is_file():
            source = address(job.thumbnail.relative_to(job.folder).as_posix())
            small = f'<a href="{address(job.name)}"><img src="{source}" alt=""></a>'
    notes = "".join(f"<br><small>{html.escape(remark)}</small>" for remark in outcome.remarks) if outcome else ""
    seconds = f"{outcome.seconds:.1f}" if outcome else ""
    return (f"<tr><td>{small}</td><td>{job.line}</td><td>{name}</td><td>{made_of}</td><td>{result}{notes}</td>"
            f"<td>{seconds}</td></tr>")
