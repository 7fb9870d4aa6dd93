"""Log lines that always carry domain, reference time and run id; as text or as JSON, on stderr."""

import json
import logging
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

_context: ContextVar[dict[str, str] | None] = ContextVar("nowcast_log_context", default=None)
_FIELDS = ("domain", "reference_time", "run_id")


@contextmanager
def log_context(**fields: str) -> Iterator[None]:
    """Attach fields to every log line of the block; a run id is made at the outermost block."""
    current = _context.get() or {"run_id": uuid.uuid4().hex[:8]}
    token = _context.set({**current, **fields})
    try:
        yield
    finally:
        _context.reset(token)


def current_context() -> dict[str, str]:
    """The fields of this block, to hand to another process."""
    return dict(_context.get() or {})


def take_context(fields: dict[str, str]) -> None:
    """Log lines of this process carry the fields that another process handed on."""
    _context.set(fields)


class _Formatter(logging.Formatter):
    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        about = {name: (_context.get() or {}).get(name, "-") for name in _FIELDS}
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        if self.as_json:
            line = {"time": time, "level": record.levelname, "logger": record.name, **about, "message": message}
            return json.dumps(line)
        return f"{time} {record.levelname:7} {' '.join(about.values())} {message}"


def configure(log_format: str, verbose: bool = False) -> None:
    """Send the log of our own rooms to stderr. The level is WARNING, or INFO with ``verbose``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(log_format == "json"))
    for room in ("pipeline", "models", "flows"):
        logger = logging.getLogger(room)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO if verbose else logging.WARNING)
        logger.propagate = False
