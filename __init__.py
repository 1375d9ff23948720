"""daVinci-MagiHuman for ComfyUI: a person who speaks, picture and sound made together."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """What ComfyUI calls to learn the nodes."""
    from .nodes import MagiHumanExtension

    return MagiHumanExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
