"""A flow's work for one domain or for all of them: one that fails never stops the others."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import NotForecast, NowcastError
from pipeline.settings import Settings, hide_secrets

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

T = TypeVar("T")
# of a state's message; the log of the run and its artifact have all of it
MESSAGE_CHARACTERS = 2000

log = logging.getLogger(__name__)


def for_domains(settings: Settings, domain: str | None, work: Callable[[str], T]) -> "list[T] | State[list[T]]":
    """Do ``work`` for the named domain, or for every domain of the settings.

    Returns:
        What the work returned, in the order of the domains' names; if something was not done, a Failed state that
        holds it and says what. A domain for which there is nothing to do yet is not a failure.

    Raises:
        Exception: the work of a domain that was named failed.
    """
    done: list[T] = []
    problems: list[str] = []
    for name in sorted(settings.domains) if domain is None else [domain]:
        try:
            result = work(name)
        except Exception as error:
            if domain is not None:
                raise
            if isinstance(error, NotForecast):
                log.info("nothing due for %s: %s", name, error)
                continue
            # the trace tells a bug from what a person can mend
            log.error("%s: %s", name, error, exc_info=not isinstance(error, NowcastError))
            problems.append(f"{name}: {error if isinstance(error, NowcastError) else repr(error)}")
            continue
        done.append(result)
        problems += [f"{name}: {problem}" for problem in getattr(result, "problems", [])]
    return end(done, problems)


def end(done: list[T], problems: list[str]) -> "list[T] | State[list[T]]":
    """What a flow returns: its results, or a Failed state that holds them and names the problems."""
    if not problems:
        return done
    from prefect.states import Failed

    failed: State[list[T]] = Failed(message=hide_secrets("; ".join(problems))[:MESSAGE_CHARACTERS], data=done)
    return failed
