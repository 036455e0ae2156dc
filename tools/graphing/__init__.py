"""Draw workflows as the page saves them, from short descriptions in Python."""
