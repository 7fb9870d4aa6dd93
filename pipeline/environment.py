"""Which variables of the environment are settings of ours, and which somebody else has set under our name."""

import logging
import re
from collections.abc import Mapping
from functools import lru_cache

log = logging.getLogger(__name__)


def own_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that begin with ``NOWCAST_``, without those that Kubernetes sets for a Service of such a name."""
    named = {name: text for name, text in environment.items() if name.startswith("NOWCAST_")}
    foreign = sorted(name for name, text in named.items() if _is_of_kubernetes(name, text))
    if foreign:
        _report_once(", ".join(foreign))
    return {name: text for name, text in named.items() if name not in foreign}


@lru_cache(maxsize=1)
def _report_once(names: str) -> None:
    log.warning("left alone, since Kubernetes sets such variables for a Service: %s", names)


def _is_of_kubernetes(name: str, text: str) -> bool:
    """Whether a variable is one that a pod gets for a Service named ``nowcast``, or ``nowcast-`` and more.

    NAME_SERVICE_HOST and NAME_SERVICE_PORT (of a named port NAME_SERVICE_PORT_PORTNAME), and the older NAME_PORT and
    NAME_PORT_80_TCP with _PROTO, _PORT and _ADDR.
    """
    if "__" in name:  # a key inside a table of ours
        return False
    if re.fullmatch(r"NOWCAST_(\w+_)?SERVICE_(HOST|PORT(_\w+)?)", name):
        return True
    if re.fullmatch(r"NOWCAST_(\w+_)?PORT_\d{1,5}_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?", name):
        return True
    is_address = re.fullmatch(r"(tcp|udp|sctp)://\S+:\d+", text) is not None
    return is_address and re.fullmatch(r"NOWCAST_(\w+_)?PORT", name) is not None
