"""MagiHuman's nodes."""

from comfy_api.latest import ComfyExtension

OLDEST = (0, 33)


class MagiHumanExtension(ComfyExtension):
    """The list of nodes, for a ComfyUI that is new enough."""

    async def get_node_list(self):
        require_version()
        from . import check, clips, conditioning, decode, edit, extend, latents, loaders, sampling, voice, windows
        from .limits import checked

        modules = (check, loaders, conditioning, latents, clips, edit, extend, windows, sampling, voice, decode)
        return [checked(node) for module in modules for node in module.NODES]


def require_version() -> None:
    """Raise RuntimeError, in one line, for a ComfyUI older than what these nodes are made for."""
    from comfyui_version import __version__

    found = tuple(int(part) for part in __version__.split(".")[:2])
    if found < OLDEST:
        raise RuntimeError(f"MagiHuman needs ComfyUI {OLDEST[0]}.{OLDEST[1]} or newer, this is "
                           f"{__version__}: update ComfyUI.")
