"""What can go wrong with a host; each message is a sentence that says what to do.

HostError
+-- SetupError   the set-up could not be made or finished
+-- ServerError  the server did not start, died, or does not answer
+-- RunError     the server refused or failed a workflow
+-- WorkflowError (workflow_api)  a workflow file cannot be turned into something to run
"""

from __future__ import annotations


class HostError(RuntimeError):
    """A failure to tell the user about in one sentence, without a traceback."""


class SetupError(HostError):
    """The host could not be set up."""


class ServerError(HostError):
    """The server did not start, stopped, or does not answer."""


class RunError(HostError):
    """The server refused or failed a workflow.

    node_id, node_type: the node it happened in, "" if none is named.
    traceback: the server's own, "" if it refused before running.
    """

    def __init__(
        self, message: str, node_id: str = "", node_type: str = "", traceback: str = ""
    ) -> None:
        super().__init__(message)
        self.node_id = node_id
        self.node_type = node_type
        self.traceback = traceback
