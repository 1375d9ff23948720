"""The files that workflows choose, and what their notes say of them."""

from magihuman_core.loading.downloads import EIGHT_BITS, ORIGINALS, download, total_gb

DEMO = "built-in demo"
NETWORKS = {"distill": "distilled", "base": "base", "540p_sr": "sr_540p", "1080p_sr": "sr_1080p"}
CHOSEN = {part: download(part, EIGHT_BITS) for part in (*NETWORKS.values(), "text_encoder", "turbo_vae", "video_vae",
                                                        "audio_vae")}
TURBO, WAN = CHOSEN["turbo_vae"].choice, CHOSEN["video_vae"].choice
AUDIO, TEXT = CHOSEN["audio_vae"].choice, CHOSEN["text_encoder"].choice
# a loader's choice: (what the note says of it, what ComfyUI's page offers to download)
FILES = {entry.choice: (entry, entry.files) for entry in CHOSEN.values()}
FILES_NOTE = """## Files: {total} GB in all

For cards of 12, 16, 24 GB and more: take these, leave *weight_dtype* at *default*. Put them below `ComfyUI/models`, \
then press R.

{rows}

*Terms*: log in and accept the terms on that page first. *About*: counted, not read from the page.{unlisted} \
*MagiHuman Check* names all that is missing. With the original files ({originals} GB, see README) choose them in the \
loaders. On cards below 40 GB set *weight_dtype* there to int8, and to fp8_e4m3fn in the text encoder's.
"""
UNLISTED = (" **ComfyUI's own list of missing models shows single files only. Not in it: {folders}**: fetch these "
            "yourself{text}.")


def row(entry) -> str:
    what = entry.what if entry.take else f"`{entry.what}`" if not entry.whole_folder else f"`{entry.path}`: all files"
    terms = " (terms)" if entry.gated else ""
    return f"- {what}, {entry.size}, from [{entry.repository}]({entry.address}){terms} into `{entry.folder}/`"


def files_note(entries) -> str:
    """What a note says of the files that a workflow needs."""
    folders = ", ".join(f"`{entry.choice}`" for entry in entries if not entry.files)
    text = ", and choose the text encoder's file in its loader" if CHOSEN["text_encoder"] in entries else ""
    originals = total_gb(download(entry.part, ORIGINALS) for entry in entries)
    return FILES_NOTE.format(total=total_gb(entries), originals=originals, rows="\n".join(map(row, entries)),
                             unlisted=UNLISTED.format(folders=folders, text=text) if folders else "")
