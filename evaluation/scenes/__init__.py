"""Procedural scenes with captions, exact targets of edits, and a checker of what a picture shows."""

from .captions import caption, sample_caption
from .render import render
from .scene import Background, Scene, SceneObject, add_object, edit_scene, remove_object, sample_scene

__all__ = [
    "Background",
    "Scene",
    "SceneObject",
    "add_object",
    "caption",
    "edit_scene",
    "remove_object",
    "render",
    "sample_caption",
    "sample_scene",
]
