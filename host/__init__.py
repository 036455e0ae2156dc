"""The only room that knows ComfyUI (`comfy.*`)."""
