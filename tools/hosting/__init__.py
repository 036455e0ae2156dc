"""A ComfyUI host from nothing: set it up, start it, talk to it. Standard library only.

`imaging.py` and `integrity.py` are the exceptions to the rule of the room: they run inside the
host's Python.
"""
