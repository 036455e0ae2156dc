"""Retrace: training-free editing of real images inside ComfyUI.

Only the entry point lives here; everything else is imported when the host asks for the nodes,
so the pure rooms (`diffusion/`, `attention/`, `evaluation/`) can be used without ComfyUI.
"""

import importlib.util
import logging
import re

WEB_DIRECTORY = "./web"
OLDEST_HOST = "0.3.75"
__version__ = "0.1.0"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    """Return the extension that lists Retrace's nodes (called by ComfyUI's loader)."""
    _tell_if_old()
    try:
        from .nodes import RetraceExtension
    except Exception:
        # the host folds an exception raised here into one line without its cause
        logging.getLogger(__name__).exception("Retrace could not be loaded")
        raise
    return RetraceExtension()


def __getattr__(name: str):
    """Answer an old host, which asks for this list and knows no entry point, with what to do."""
    if name == "NODE_CLASS_MAPPINGS" and not _knows_entry_points():
        _tell_if_old()
    raise AttributeError(name)


def _knows_entry_points() -> bool:
    try:
        return importlib.util.find_spec("comfy_api.latest") is not None
    except ModuleNotFoundError:
        return False


def _tell_if_old() -> None:
    """Say in the host's log that it is older than what Retrace is tested on."""
    try:
        from comfyui_version import __version__ as version
    except ImportError:  # before ComfyUI 0.3.11 there is none
        version = "0"
    found, oldest = ([int(n) for n in re.findall(r"\d+", v)] for v in (version, OLDEST_HOST))
    if found < oldest:
        old = f"this is {version}" if version != "0" else "this is older"
        works = "some nodes may fail" if _knows_entry_points() else "its nodes are not loaded"
        logging.getLogger(__name__).error(
            "Retrace needs ComfyUI %s or newer and %s, so %s: update ComfyUI", OLDEST_HOST, old,
            works,
        )
