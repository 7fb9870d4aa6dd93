"""Which of several quantities in a feed of composites a domain takes: one, and then always the same."""

import logging
from collections.abc import Sequence

from pipeline.domain import Domain
from pipeline.errors import SettingsError, StoreUnavailable, machine_fault
from pipeline.frames.archive import Archive
from pipeline.frames.frame_source import SAME_INTERVAL, FrameSource
from pipeline.sources import RainField, VolumeRef
from pipeline.sources.gridded import GriddedFiles
from pipeline.storage import Store

log = logging.getLogger(__name__)

# files that are looked into before there is a frame: of a feed with three quantities every five minutes, 20 minutes
LOOKED_INTO = 12


def keep_one_quantity(
    source: GriddedFiles, domain: Domain, archive: Archive, refs: Sequence[VolumeRef], store: Store
) -> None:
    """Have the source decode that quantity alone of which the frames are, or, before there are any, the best it has.

    Args:
        refs: what is new, in order.

    Raises:
        SettingsError: the settings name another quantity than the frames have; or all that could be looked into are
            means over more than the cadence.
    """
    standing = archive.source()
    if standing is not None and standing.quantity:
        wanted = source.reading.quantity
        if wanted and wanted != standing.quantity:
            raise SettingsError(
                f"domains.{domain.name}.source.quantity is now {wanted}, but the archive {archive.folder} was made "
                f"from {standing.quantity}; use another root or another domain name"
            )
        source.keep(standing.quantity)
    elif standing is None or source.reader.quantities:
        source.keep(_best(source, domain, standing, refs, store))


def overlap(domain: Domain, standing: FrameSource | None, field: RainField) -> str:
    """Why a field is no frame beside the others, since it is a mean over another interval; empty if it may be one."""
    forgiven = SAME_INTERVAL * domain.cadence.total_seconds()
    minutes = f"a mean over {field.interval_s / 60:g} minutes"
    if standing is None:
        if field.interval_s > domain.cadence.total_seconds() + forgiven:
            return f"{minutes}, and frames every {domain.cadence_minutes} would overlap"
    elif abs(field.interval_s - standing.interval_s) > forgiven:
        return f"{minutes}, and the frames of {domain.name} are over {standing.interval_s / 60:g}"
    return ""


def _best(
    source: GriddedFiles, domain: Domain, standing: FrameSource | None, refs: Sequence[VolumeRef], store: Store
) -> str:
    """The first quantity in the reader's order that a new file has; empty if none can be read."""
    order, usable, unusable = source.reader.quantities, set(), []
    unread = ""
    for ref in refs[:LOOKED_INTO]:
        with store.scratch() as folder:
            try:
                field = source.decode(source.fetch(ref, folder))
            except StoreUnavailable:
                raise
            except Exception as err:  # it is met again when it is taken in
                log.debug("not looked into: %s: %s", ref.key, err)
                if fault := machine_fault(err):
                    unread = f"{ref.key} cannot be read: {fault}"
                continue
        if reason := overlap(domain, standing, field):
            unusable.append(f"{ref.key} is {reason}")
        else:
            usable.add(field.parameter)
            if not order or field.parameter == order[0]:
                break
    if unusable and not usable and standing is None:
        raise SettingsError(
            f"domains.{domain.name}.cadence_minutes = {domain.cadence_minutes}, but {unusable[0]}; "
            "the cadence must be at least as long"
        )
    best = min(usable, key=lambda name: order.index(name) if name in order else len(order), default="")
    if unread and usable and order and best != order[0]:  # what is kept for good is not decided by what could be read
        raise StoreUnavailable(
            f"the quantity of {domain.name} is not known yet: {unread}, others hold {', '.join(sorted(usable))}; "
            f"domains.{domain.name}.source.quantity decides it"
        )
    return best
