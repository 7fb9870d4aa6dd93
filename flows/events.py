"""Alerts as events of Prefect, for its automations."""

from typing import Any


def emit(name: str, resource: str, payload: dict[str, Any]) -> None:
    """An event about ``resource``, as ``pipeline.alerts.check`` wants it; within a flow, or where a server is set."""
    from prefect.events import emit_event

    emit_event(name, {"prefect.resource.id": resource, "prefect.resource.name": payload["text"]}, payload=payload)
