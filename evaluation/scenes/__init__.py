"""Procedural scenes with captions, exact targets of edits, and a checker of what is seen."""

from .captions import caption, sample_caption
from .cases import EditCase, held_out_prompts, held_out_scenes, swap_cases
from .checker import CheckResult, check, read_picture
from .render import render
from .scene import (
    Background,
    Scene,
    SceneObject,
    add_object,
    edit_scene,
    remove_object,
    sample_scene,
)

__all__ = [
    "Background",
    "CheckResult",
    "EditCase",
    "Scene",
    "SceneObject",
    "add_object",
    "caption",
    "check",
    "edit_scene",
    "held_out_prompts",
    "held_out_scenes",
    "read_picture",
    "remove_object",
    "render",
    "sample_caption",
    "sample_scene",
    "swap_cases",
]
