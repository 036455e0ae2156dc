"""Words under a node while it runs, on hosts that can show them; in the log everywhere."""

import logging
from typing import Any


def announce(node_id: Any, text: str) -> None:
    """Show a line under a node and write it to the log."""
    logging.getLogger(__name__).info(text)
    try:
        from server import PromptServer
    except ImportError:
        return
    send = getattr(getattr(PromptServer, "instance", None), "send_progress_text", None)
    if send is not None and node_id is not None:
        send(text, node_id)
