"""The small model that makes the pack work with nothing downloaded."""
