"""Workflows in the front end's format: the way to the API's, and what the widgets of a node are.

The server takes {id: {class_type, inputs}}; a workflow file holds nodes with positions, a list of links, and
each node's widget values as a bare list. Which value belongs to which input only /object_info tells.
"""

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
NOTES = ("Note", "MarkdownNote")
CONTROLS = ("fixed", "increment", "decrement", "randomize")
# Widgets that the front end adds behind an input with this option: a button, or a player and a button.
EXTRA = {"image_upload": 1, "video_upload": 1, "audio_upload": 2}
AUTOGROW = "COMFY_AUTOGROW_V3"


def inputs_of(info: dict) -> dict[str, tuple[str, dict, bool]]:
    """{name: (type, options, required)} of a node of /object_info; old-style combos get the new style."""
    found = {}
    for section in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(section, {}).items():
            options = dict(rest[0]) if rest else {}
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            found[name] = (kind, options, section == "required")
    return found


def sockets_of(info: dict, node: dict) -> dict[str, tuple[str, bool]]:
    """{name: (type, required)} of inputs that take links only; growing ones as far as the node shows them."""
    found = {}
    for name, (kind, options, required) in inputs_of(info).items():
        if kind == AUTOGROW:
            (item,) = options["template"]["input"]["required"].values()
            prefix, least = f"{name}.{options['template']['prefix']}", options["template"]["min"]
            shown = [entry["name"] for entry in node["inputs"] if entry["name"].startswith(prefix)]
            found.update({entry: (item[0], number < least) for number, entry in enumerate(shown)})
        elif kind not in WIDGETS:
            found[name] = (kind, required)
    return found


def widget_values(info: dict, values: list) -> tuple[dict, list]:
    """({widget: (value, type, options)}, what is left over) of a node's list of widget values."""
    rest, found = list(values or []), {}

    def take(name, kind, options):
        value = rest.pop(0)
        found[name] = (value, kind, options)
        if kind == "COMFY_DYNAMICCOMBO_V3":  # what else is asked depends on the choice
            chosen = next((o for o in options["options"] if o["key"] == value), None)
            for key, (sub, more, _) in inputs_of({"input": chosen["inputs"]}).items() if chosen else ():
                take(f"{name}.{key}", sub, more)
        if options.get("control_after_generate"):
            found[f"{name}: control"] = (rest.pop(0), "COMBO", {"options": list(CONTROLS)})
        for option, count in EXTRA.items():
            if options.get(option):
                del rest[:count]

    for name, (kind, options, _) in inputs_of(info).items():
        if kind in WIDGETS:
            if not rest:
                break
            take(name, kind, options)
    return found, rest


def to_api(workflow: dict, object_info: dict) -> dict:
    """The prompt that the front end makes of a workflow."""
    origin = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES or node.get("mode", 0) != 0:
            continue
        values, _ = widget_values(object_info[node["type"]], node.get("widgets_values"))
        inputs = {name: value for name, (value, *_) in values.items() if not name.endswith(": control")}
        inputs.update({entry["name"]: origin[entry["link"]] for entry in node.get("inputs", ())
                       if entry.get("link") is not None})
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
