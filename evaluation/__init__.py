"""Benchmarks of edits: scenes with exact targets, metrics, reports. Runs without ComfyUI."""
