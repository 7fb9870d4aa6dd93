"""Delivery of a message to a webhook: short, bounded, and without its address in any text."""

import http.client
import json
import threading
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 5.0
TRIES = 2


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: followed, the message would be lost, or go to another host."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


def host_of(address: str) -> str:
    """All of a webhook's address that may be shown."""
    return urlsplit(address).hostname or "unknown host"


def post(address: str, message: dict[str, Any]) -> str:
    """Send a message as JSON, twice if need be.

    Returns:
        Why it was not delivered, without the address; empty if it was.
    """
    reason = ""
    for _ in range(TRIES):
        answers: list[str] = []
        # a thread, since neither the look-up of the host nor an answer that trickles in heeds the time limit
        sender = threading.Thread(target=_send, args=(address, message, answers), name="webhook", daemon=True)
        sender.start()
        sender.join(TIMEOUT_S)
        reason = answers[0] if answers else f"no answer within {TIMEOUT_S:g} seconds"
        if not reason:
            break
    return reason


def _send(address: str, message: dict[str, Any], answers: list[str]) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "nowcast-pipeline"}
    request = urllib.request.Request(address, json.dumps(message).encode(), headers, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S):
            answers.append("")  # the content of the answer is not read
    except urllib.error.HTTPError as err:
        where = " (a redirect, which is not followed; give the final address)" if 300 <= err.code < 400 else ""
        answers.append(f"it answers {err.code}{where}")
        err.close()
    except (OSError, http.client.HTTPException, ValueError) as err:
        cause = getattr(err, "reason", err)
        # texts of these errors may hold the address
        answers.append(cause.strerror if isinstance(cause, OSError) and cause.strerror else type(cause).__name__)
