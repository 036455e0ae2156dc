"""Retrace: training-free editing of real images inside ComfyUI.

Only the entry point lives here; everything else is imported when the host asks for the nodes,
so the pure rooms (`diffusion/`, `attention/`, `evaluation/`) can be used without ComfyUI.
"""

import logging

WEB_DIRECTORY = "./web"
__version__ = "0.1.0"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    """Return the extension that lists Retrace's nodes (called by ComfyUI's loader)."""
    try:
        from .nodes import RetraceExtension
    except Exception:
        # the host folds an exception raised here into one line without its cause
        logging.getLogger(__name__).exception("Retrace could not be loaded")
        raise
    return RetraceExtension()
