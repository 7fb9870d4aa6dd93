"""Warnings of a domain from cycle to cycle: their state and record below the root, and what is still to be sent."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline import times
from pipeline.catalog import Catalog
from pipeline.domain import Domain
from pipeline.place_settings import WarningRule
from pipeline.storage import Store
from pipeline.warnings.alerts import RuleState, State, next_state
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
    """What was raised or ended, in words; and which webhooks did not take their messages."""

    warnings: tuple[str, ...] = ()
    undelivered: tuple[str, ...] = ()


def watch(domain: Domain, store: Store, catalog: Catalog, place_forecasts: Path) -> Told:
    """Raise and end warnings after an issued cycle, record them, and send them to their webhooks.

    A webhook that cannot be reached is tried again with the next cycle. A forecast that was issued when the time of a
    rule was over changes nothing for that rule.

    Args:
        place_forecasts: the JSON document of the cycle's places.
    """
    if not domain.warnings:
        return Told()
    try:
        document = json.loads(place_forecasts.read_text(encoding="utf-8"))
        reference_time = times.parse_time(document["reference_time"])
        issued_after = times.parse_time(document["issue_time"]) - reference_time
        ahead = [rule for rule in domain.warnings if issued_after < timedelta(minutes=rule.minutes)]
        amounts = _amounts(ahead, document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        log.warning("no warnings from %s: %s: %s", place_forecasts.name, type(err).__name__, err)
        return Told()
    path = store.warnings(domain.name)
    with catalog.write(domain.name):  # its lock keeps two processes apart
        kept = _read(path)
        state, messages = next_state(kept.state, domain.warnings, amounts, reference_time)
        about = {key: document.get(key, "") for key in ("issue_time", "method", "fallback_reason")}
        told = [(message.rule, {**message.to_json(domain.name), **about}) for message in messages]
        for _, entry in told:
            store.append_line(path.with_suffix(".jsonl"), entry)
        wanted = [(rule.key, entry) for rule, entry in told if rule.webhook is not None]
        if state is not kept.state:
            _write(store, path, _Kept(state, _newest(kept.pending + wanted)))
    undelivered = _deliver(domain, store, catalog, path)
    for message in messages:
        log.info("%s: %s", message.event, message.text)
    return Told(tuple(f"warning {message.event}: {message.text}" for message in messages), undelivered)


def pending(store: Store, domain: str) -> int:
    """Messages that no webhook took so far."""
    return len(_read(store.warnings(domain)).pending)


def _amounts(rules: Sequence[WarningRule], document: dict[str, Any]) -> dict[str, float | None]:
    """The amount that each rule looks at; of an area the mean."""
    by_place = {place["name"]: place["amount_mm"] for place in document["places"]}
    found = {rule.key: by_place.get(rule.place, {}).get(str(rule.minutes)) for rule in rules}
    return {key: None if amount is None else float(amount) for key, amount in found.items()}


def _newest(pending: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    if len(pending) > MOST_PENDING:
        log.warning("%d messages that no webhook took are given up", len(pending) - MOST_PENDING)
    return pending[-MOST_PENDING:]


def _deliver(domain: Domain, store: Store, catalog: Catalog, path: Path) -> tuple[str, ...]:
    """Send what is pending, oldest first, outside of the catalog's lock; after a failure no more to that host.

    Returns:
        What could not be sent, and why.
    """
    if not _read(path).pending:
        return ()
    failures = []
    with catalog.lease(f"warnings/{domain.name}") as lease:
        if lease is None:
            return ()  # another process sends; what it does not know of yet goes out with the next cycle
        addresses = {rule.key: rule.webhook.get_secret_value() for rule in domain.warnings if rule.webhook is not None}
        silent: set[str] = set()
        done = set()
        for key, message in _read(path).pending:
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
            with catalog.write(domain.name):
                kept = _read(path)
                _write(store, path, _Kept(kept.state, [one for one in kept.pending if one[1]["id"] not in done]))
    return tuple(failures)


def _read(path: Path) -> _Kept:
    """The state as it was written; a damaged one is begun anew."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {data['format_version']}, this version reads {FORMAT_VERSION}")
        rules = {
            key: RuleState(times.parse_time(rule["raised_at"]) if rule["raised_at"] else None, int(rule["calm"]))
            for key, rule in data["rules"].items()
        }
        pending = [(str(one["rule"]), {"id": "", **one["message"]}) for one in data["pending"]]
        return _Kept(State(times.parse_time(data["reference_time"]), rules), pending)
    except FileNotFoundError:
        return _Kept()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        log.warning("%s is damaged, warnings begin anew: %s", path, err)
        return _Kept()


def _write(store: Store, path: Path, kept: _Kept) -> None:
    assert kept.state.reference_time is not None
    data = {
        "format_version": FORMAT_VERSION,
        "reference_time": times.iso(kept.state.reference_time),
        "rules": {
            key: {"raised_at": times.iso(rule.raised_at) if rule.raised_at else None, "calm": rule.calm}
            for key, rule in kept.state.rules.items()
        },
        "pending": [{"rule": key, "message": message} for key, message in kept.pending],
    }
    with store.publish(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
