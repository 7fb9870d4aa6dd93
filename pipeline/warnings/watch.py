"""Warnings of a domain from cycle to cycle: their state and record below the root, and what is still to be sent."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline import times
from pipeline.catalog import Catalog
from pipeline.domain import Domain
from pipeline.place_settings import WarningRule
from pipeline.storage import Store
from pipeline.warnings.alerts import Message, RuleState, State, next_state
from pipeline.warnings.webhook import host_of, post

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
# messages that wait for their webhook; older ones are of no use to anybody
MOST_PENDING = 100


@dataclass
class _Kept:
    """What stands in the state's file.

    Attributes:
        pending: key of the rule, and the message that its webhook has not got.
    """

    state: State = field(default_factory=State)
    pending: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class Told:
    """What was raised or ended, in words."""

    warnings: tuple[str, ...] = ()


def watch(domain: Domain, store: Store, place_forecasts: Path, revision: int = 1) -> Told:
    """Raise and end warnings after an issued cycle, and record them with what is to be sent; see ``deliver``.

    A forecast that was issued when the time of a rule was over changes nothing for that rule.

    Args:
        place_forecasts: the JSON document of the cycle's places.
        revision: of the forecast.
    """
    if not domain.warnings:
        return Told()
    try:
        document = json.loads(store.read(place_forecasts))
        reference_time, issue_time = (times.parse_time(document[key]) for key in ("reference_time", "issue_time"))
        issued_after = issue_time - reference_time
        ahead = [rule for rule in domain.warnings if issued_after < timedelta(minutes=rule.minutes)]
        amounts = _amounts(ahead, document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        log.warning("no warnings from %s: %s: %s", place_forecasts.name, type(err).__name__, err)
        return Told()
    path = store.warnings(domain.name)
    messages: list[Message] = []

    def step(standing: bytes | None) -> bytes | None:
        nonlocal messages
        kept = _parsed(standing, path)
        state, messages = next_state(kept.state, domain.warnings, amounts, reference_time, revision)
        about = {key: document.get(key, "") for key in ("issue_time", "method", "fallback_reason")}
        told = [(message.rule, {**message.to_json(domain.name), **about}) for message in messages]
        for _, entry in told:  # before the state: what a killed process has not told is told again
            store.append_lines(path.with_suffix(".jsonl"), issue_time, entry)
        wanted = [(rule.key, entry) for rule, entry in told if rule.webhook is not None]
        return None if state is kept.state else _content(_Kept(state, _newest(kept.pending + wanted)))

    store.update(path, step)
    for message in messages:
        log.info("%s: %s", message.event, message.text)
    return Told(tuple(f"warning {message.event}: {message.text}" for message in messages))


def pending(store: Store, domain: str) -> int:
    """Messages that no webhook took so far."""
    return len(_read(store, store.warnings(domain)).pending)


def _amounts(rules: Sequence[WarningRule], document: dict[str, Any]) -> dict[str, float | None]:
    """The amount that each rule looks at; of an area the mean."""
    by_place = {place["name"]: place["amount_mm"] for place in document["places"]}
    found = {rule.key: by_place.get(rule.place, {}).get(str(rule.minutes)) for rule in rules}
    return {key: None if amount is None else float(amount) for key, amount in found.items()}


def _newest(pending: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    if len(pending) > MOST_PENDING:
        log.warning("%d messages that no webhook took are given up", len(pending) - MOST_PENDING)
    return pending[-MOST_PENDING:]


def deliver(domain: Domain, store: Store, catalog: Catalog) -> tuple[str, ...]:
    """Send what is pending to the webhooks, oldest first; after a failure no more to that host. May take a while.

    Returns:
        What could not be sent, and why.
    """
    path = store.warnings(domain.name)
    if not domain.warnings or not _read(store, path).pending:
        return ()
    failures = []
    with catalog.lease(f"warnings/{domain.name}") as lease:
        if lease is None:
            return ()  # another process sends; what it does not know of yet goes out with the next cycle
        addresses = {rule.key: rule.webhook.get_secret_value() for rule in domain.warnings if rule.webhook is not None}
        silent: set[str] = set()
        done = set()
        for key, message in _read(store, path).pending:
            address = addresses.get(key)
            if address is None:  # the settings have no such webhook any more
                done.add(message["id"])
                continue
            host = host_of(address)
            reason = "" if host in silent else post(address, message)
            if reason:
                silent.add(host)
                log.warning("the webhook at %s did not take %s: %s", host, message["id"], reason)
                failures.append(
                    f"the webhook at {host} did not take {message['id']}: {reason}; the next cycle tries again"
                )
            elif host not in silent:
                done.add(message["id"])
        if done:
            store.update(path, lambda standing: _without(_parsed(standing, path), done))
    return tuple(failures)


def _without(kept: _Kept, done: set[str]) -> bytes | None:
    """The state without messages that were sent; None if it has none of them."""
    pending = [one for one in kept.pending if one[1]["id"] not in done]
    return None if len(pending) == len(kept.pending) else _content(_Kept(kept.state, pending))


def _read(store: Store, path: Path) -> _Kept:
    try:
        return _parsed(store.read(path), path)
    except FileNotFoundError:
        return _Kept()


def _parsed(content: bytes | None, path: Path) -> _Kept:
    """The state as it was written; a damaged one is begun anew."""
    if content is None:
        return _Kept()
    try:
        data = json.loads(content)
        if data["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {data['format_version']}, this version reads {FORMAT_VERSION}")
        rules = {
            key: RuleState(
                _time_or_none(rule["raised_at"]),
                int(rule["calm"]),
                _time_or_none(rule.get("raised_before")),
                int(rule.get("calm_before", 0)),
            )
            for key, rule in data["rules"].items()
        }
        pending = [(str(one["rule"]), {"id": "", **one["message"]}) for one in data["pending"]]
        return _Kept(State(times.parse_time(data["reference_time"]), rules, int(data.get("revision", 1))), pending)
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        log.warning("%s is damaged, warnings begin anew: %s", path, err)
        return _Kept()


def _time_or_none(text: str | None) -> datetime | None:
    return times.parse_time(text) if text else None


def _content(kept: _Kept) -> bytes:
    assert kept.state.reference_time is not None
    data = {
        "format_version": FORMAT_VERSION,
        "reference_time": times.iso(kept.state.reference_time),
        "revision": kept.state.revision,
        "rules": {
            key: {
                "raised_at": times.iso(rule.raised_at) if rule.raised_at else None,
                "calm": rule.calm,
                "raised_before": times.iso(rule.raised_before) if rule.raised_before else None,
                "calm_before": rule.calm_before,
            }
            for key, rule in kept.state.rules.items()
        },
        "pending": [{"rule": key, "message": message} for key, message in kept.pending],
    }
    return (json.dumps(data, indent=1) + "\n").encode()
