"""Alerts as events of Prefect, for its automations."""

from typing import Any


def emit(name: str, resource: str, payload: dict[str, Any]) -> None:
    """An event about ``resource``; see ``pipeline.alerts.Emit``. Without a server it goes nowhere."""
    from prefect.events import emit_event

    emit_event(name, {"prefect.resource.id": resource, "prefect.resource.name": payload["text"]}, payload=payload)
