"""Live cycles: the feeds are polled, what is due is forecast in batches, what was missed is recorded with the reason.

It decides by what the catalog holds, so that it may be ended at any time, and another may go on.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import nowcast, promotion, times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.errors import NowcastError, StoreUnavailable, machine_fault, reason_of
from pipeline.intake import Intake, Polled
from pipeline.issue import Wanted, give_up, issue
from pipeline.lateness import OF_FRAMES, Decision, Frames, decide, too_late
from pipeline.operations import Step, bare
from pipeline.process_memory import give_back_freed
from pipeline.publish import Outcome
from pipeline.settings import Settings
from pipeline.storage import Store

log = logging.getLogger(__name__)

# what gave no product (it failed, is held by somebody else, or has not changed) is looked at again after this time
RETRY = timedelta(seconds=20)
# a look over the last day, for what came very late: verification wants it
LATE_REACH, LATE_EVERY = timedelta(days=1), timedelta(hours=1)
# instants of a backlog that are taken in at once, so that the newest is never behind a long queue
BACKLOG_INSTANTS = 6
LONGEST_BACKLOG = timedelta(days=30)
# cycles that are given up in one transaction, for which another writer may have to wait
GIVEN_UP_AT_ONCE = 200
# between two looks at a source that cannot be read
FAULTY_POLL_S = 15.0
# a look that takes longer is told as a fault
SLOW_LOOK = timedelta(minutes=2)
# between two notes of looks that all end the same
NOTED_EVERY = timedelta(seconds=30)
IDLE_S = 0.5
# cycles that wait for a challenger in the shadow, the newest first
MOST_BESIDE = 8


# rows of the catalog by the instant that they are of
_Rows = dict[datetime, Row]


@dataclass
class Feed:
    """What the process knows of a domain; all of it can be found again in the catalog.

    Attributes:
        since: first instant that was to be forecast live.
        first_open: every instant before is settled, or is one of ``missed``.
        next_poll: when the source is looked at again.
        next_late: when the last day is looked over again.
        backlog: what is still to be taken in besides the newest, newest last.
        retry: cycles that gave no product, and when they are looked at again.
        failure: of a cycle, the last one.
        due_since: when its newest due cycle became due.
        looked: the feed was looked at since the process began; before, its newest frame is not known.
        polled: when the last look ended well.
        fault: of the last look; empty if it ended well.
        noted: when the catalog was told.
        settled_until: what it was told.
        begun: when the look began that goes on, or was the last.
        newest_last: it was at the newest, not at the backlog.
        missed: instants to be given up, and what is known of the reason.
        give_up_again: when that is tried, if the last time could not do it.
        away: from when until when nothing was at work, the last time; what came meanwhile is read bit by bit.
    """

    domain: Domain
    since: datetime
    first_open: datetime
    next_poll: datetime
    next_late: datetime
    backlog: list[tuple[datetime, datetime]] = field(default_factory=list)
    retry: dict[datetime, datetime] = field(default_factory=dict)
    failure: dict[datetime, str] = field(default_factory=dict)
    due_since: datetime | None = None
    looked: bool = False
    polled: datetime | None = None
    fault: str = ""
    noted: datetime = times.EPOCH
    settled_until: datetime = times.EPOCH
    begun: datetime = times.EPOCH
    newest_last: bool = False
    missed: dict[datetime, Decision] = field(default_factory=dict)
    give_up_again: datetime = times.EPOCH
    away: tuple[datetime, datetime] = (times.EPOCH, times.EPOCH)

    def has_missed(self, now: datetime) -> bool:
        """Whether there is something to be given up now."""
        return bool(self.missed) and now >= self.give_up_again

    @property
    def first_unsettled(self) -> datetime:
        """Every instant before was forecast, or was given up on record."""
        return min(self.missed, default=self.first_open)


class Live:
    """The work of the resident process; ``step`` is called again and again, by any clock.

    Args:
        clock: the wall clock, or one that is simulated.
        intake: takes in data.
        step: wraps the work on a batch, as in ``pipeline.operations``.
        after: called with the outcomes of each batch.
        report: called with a domain and the fault of the software that was met in its work.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        catalog: Catalog,
        clock: times.Clock,
        intake: Intake,
        step: Step = bare,
        after: Callable[[list[Outcome]], None] = lambda outcomes: None,
        report: Callable[[str, str], None] = lambda domain, fault: None,
    ) -> None:
        self._report = report
        self.settings, self.store, self.catalog, self.clock, self.intake = settings, store, catalog, clock, intake
        self._issue, self._after = step(self._issue_batch), after
        self._loader = nowcast.Loader(store, settings, catalog)
        known = {row["domain"]: row for row in catalog.read(sa.select(tables.feeds))}
        self._beside: list[Wanted] = []  # what challengers may forecast too
        self._behind = ""  # domain of whose backlog a piece is being taken in, one at a time for all
        self.feeds = [self._open(domain, known.get(name)) for name, domain in sorted(settings.domains.items())]

    def step(self) -> float:
        """Do what is due now. Returns after how many seconds it wants to be called again."""
        for polled in self.intake.finished():
            self._note(polled)
        now = self.clock.now()
        for feed in self.feeds:
            with self._isolated(feed, "to poll the feed"):
                self._poll(feed, now)
        for polled in self.intake.finished():
            self._note(polled)
        now = self.clock.now()
        frames, cycles = self._facts(now)
        due = []
        for feed in (one for one in self.feeds if one.looked):
            with self._isolated(feed, "to decide what is due"):
                due += self._due(feed, Frames(frames[feed.domain.name]), cycles[feed.domain.name], now)
        waiting = self._wait_for_others(due, now) if due else IDLE_S
        if not due and self._beside:
            self._shadow(self._beside.pop(0))
            return 0.0
        if waiting > 0:  # while nothing is due
            return 0.0 if self._give_up_missed(now) else min(waiting, IDLE_S)
        outcomes = self._issue(due)
        self._learn(outcomes)
        self._after(outcomes)
        self._beside = [*due, *self._beside][:MOST_BESIDE]
        give_back_freed()
        return 0.0

    def _open(self, domain: Domain, row: Row | None) -> Feed:
        now = self.clock.now()
        first_open = times.first_slot(now - timedelta(seconds=domain.lateness.grace_s), domain.cadence)
        # at the first start what can still serve is made; what came before it was nobody's duty
        since = times.first_slot(now, domain.cadence) if row is None else tables.from_seconds(row["since"])
        if row is not None:
            first_open = min(first_open, tables.from_seconds(row["settled_until"]))
        feed = Feed(domain, since, first_open, now, now, settled_until=first_open)
        if row is None:
            with self.catalog.write(domain.name) as connection:
                values = {"domain": domain.name, "since": times.seconds(since), "settled_until": times.seconds(since)}
                self.catalog.upsert(
                    connection, tables.feeds, [values | {"polled_at": 0.0, "fault_at": 0.0, "fault": ""}]
                )
        elif row["polled_at"]:
            feed.polled = tables.from_seconds(row["polled_at"])
            if now - feed.polled > domain.cadence:
                feed.away = feed.polled, now
            self._add_backlog(feed, feed.polled, now)
        return feed

    # -- feeds

    def _poll(self, feed: Feed, now: datetime) -> None:
        """Begin a look at the feed if it is time: at the newest and, in turn with it, at a piece of the backlog."""
        domain = feed.domain
        if self.intake.is_busy(domain):
            if now - feed.begun > SLOW_LOOK:
                self._tell(feed, f"its source has been read since {times.iso(feed.begun)}", now)
            return
        if now >= feed.next_late:
            feed.next_late = now + LATE_EVERY
            self._add_backlog(feed, now - LATE_REACH, now)
        behind = bool(feed.backlog) and not self._behind and feed.looked
        if now >= feed.next_poll and not (behind and feed.newest_last):
            pause = max(self.settings.live.poll_s, FAULTY_POLL_S if feed.fault else 0.0)
            feed.next_poll = now + timedelta(seconds=pause)
            instants = domain.input_frames + OF_FRAMES
            # at first what the newest forecast needs, then all that may still be of use
            grace = timedelta(seconds=domain.lateness.grace_s) if feed.looked else timedelta(0)
            feed.begun, feed.newest_last = now, True
            self.intake.begin(domain, now - grace - instants * domain.cadence, now, now)
        elif behind:
            self._behind = domain.name
            feed.begun, feed.newest_last = now, False
            self.intake.begin(domain, *feed.backlog.pop(), now)

    def _add_backlog(self, feed: Feed, start: datetime, end: datetime) -> None:
        length = BACKLOG_INSTANTS * feed.domain.cadence
        start = max(start, end - LONGEST_BACKLOG)
        while start < end:
            piece = (start, min(start + length, end))
            if piece not in feed.backlog:
                feed.backlog.append(piece)
            start += length
        feed.backlog.sort()

    def _note(self, polled: Polled) -> None:
        """Learn how a look ended; the catalog is told of faults at once, of the rest now and then."""
        feed = next(feed for feed in self.feeds if feed.domain.name == polled.domain)
        feed.looked = True
        if self._behind == polled.domain:
            self._behind = ""
        now = self.clock.now()
        if polled.result is not None:
            if feed.polled is not None and now - feed.polled > LATE_EVERY:  # it was away, and may have kept what came
                if not feed.fault:  # its source could be read all the time: nothing was at work
                    feed.away = feed.polled, now
                self._add_backlog(feed, feed.polled, now)
            feed.polled = now
        self._tell(feed, polled.fault, now)

    def _tell(self, feed: Feed, fault: str, now: datetime) -> None:
        """Tell the catalog how a look ended, and until where all is settled."""
        settled = feed.first_unsettled > feed.settled_until
        if fault == feed.fault and not settled and now - feed.noted < NOTED_EVERY:
            return
        if fault != feed.fault:
            said = f"cannot be taken in: {fault}" if fault else "can be taken in again"
            log.warning("the feed of %s %s", feed.domain.name, said)
        feed.fault, feed.noted, feed.settled_until = fault, now, max(feed.first_unsettled, feed.settled_until)
        seconds = now.timestamp()
        told = {"fault_at": seconds, "fault": fault} if fault else {"polled_at": seconds, "fault_at": 0.0, "fault": ""}
        told["settled_until"] = times.seconds(feed.settled_until)
        with self.catalog.write(feed.domain.name) as connection:
            connection.execute(sa.update(tables.feeds).where(tables.feeds.c.domain == feed.domain.name).values(told))

    # -- cycles

    def _facts(self, now: datetime) -> tuple[dict[str, _Rows], dict[str, _Rows]]:
        """By domain the frames and issued cycles that decide on its open instants."""
        f, c = tables.frames.c, tables.cycles.c
        frames: dict[str, _Rows] = defaultdict(dict)
        cycles: dict[str, _Rows] = defaultdict(dict)
        if self.feeds:
            first = min(_first_needed(feed) for feed in self.feeds)
            names = [feed.domain.name for feed in self.feeds]  # so that the keys serve as an index
            inside = f.valid_time.between(times.seconds(first), times.seconds(now))
            for row in self.catalog.read(sa.select(tables.frames).where(f.domain.in_(names), inside)):
                frames[row["domain"]][tables.from_seconds(row["valid_time"])] = row
            since = c.reference_time >= times.seconds(min(feed.first_open for feed in self.feeds))
            query = sa.select(tables.cycles).where(c.domain.in_(names), since, c.kind == "issued").order_by(c.revision)
            for row in self.catalog.read(query):
                cycles[row["domain"]][tables.from_seconds(row["reference_time"])] = row
        return frames, cycles

    @contextmanager
    def _isolated(self, feed: Feed, work: str) -> Iterator[None]:
        """What is wrong with one feed does not stop the others; a store or catalog that is gone stops all."""
        try:
            yield
        except StoreUnavailable:
            raise
        except NowcastError as err:
            log.warning("%s: not done, %s: %s", feed.domain.name, work, err)
        except Exception as err:
            if fault := machine_fault(err):
                raise StoreUnavailable(f"{feed.domain.name}: not done, {work}: {fault}") from err
            log.exception("%s: not done, %s", feed.domain.name, work)
            self._report(feed.domain.name, reason_of(err))

    def _due(self, feed: Feed, frames: Frames, cycles: _Rows, now: datetime) -> list[Wanted]:
        """The newest due cycle; on the way what was missed is noted, and what is settled is closed."""
        domain = feed.domain
        decisions = {
            time: decide(domain, time, now, cycles.get(time), frames)
            for time in times.slots(feed.first_open, now, domain.cadence)
        }
        feed.missed |= {t: one for t, one in decisions.items() if one.state == "missed" and t >= feed.since}
        waiting = [time for time, one in decisions.items() if one.state in {"wait", "due"}]
        following = max(decisions, default=feed.first_open - domain.cadence) + domain.cadence
        feed.first_open = min(waiting, default=following)
        feed.retry = {time: again for time, again in feed.retry.items() if time >= feed.first_open}
        feed.failure = {time: why for time, why in feed.failure.items() if time >= feed.first_unsettled}
        due = [time for time in waiting if decisions[time].state == "due" and feed.retry.get(time, now) <= now]
        if not due:
            feed.due_since = None
            return []
        feed.due_since = feed.due_since or now
        cause = decisions[max(due)].cause
        return [Wanted(domain, max(due), cause, revise=cause.startswith("reissue"))]

    def _give_up_missed(self, now: datetime) -> bool:
        """Record some of what was missed; whether anything was."""
        for feed in self.feeds:
            if not feed.has_missed(now):
                continue
            before = len(feed.missed)
            feed.give_up_again = now + RETRY  # unless it is done
            with self._isolated(feed, "to give up what was missed"):
                self._give_up(feed, sorted(feed.missed)[:GIVEN_UP_AT_ONCE], now)
            if len(feed.missed) < before:
                feed.give_up_again = now
                return True
        return False

    def _give_up(self, feed: Feed, reference_times: Sequence[datetime], now: datetime) -> None:
        unknown = [t for t in reference_times if t not in feed.failure and not feed.missed[t].cause]
        reasons = self._why_no_frames(feed, unknown, now) if unknown else {}
        for time in reference_times:
            if time in feed.failure:
                reasons[time] = f"it was tried until {times.iso(now)} and failed: {feed.failure[time]}"
            elif feed.missed[time].cause:
                reasons[time] = feed.missed[time].cause
        outcomes = give_up(self.store, self.catalog, feed.domain, reasons, now)
        for time, outcome in outcomes.items():
            if outcome.state != "held":  # by a process that works on it; it is looked at again
                feed.missed.pop(time)
                feed.failure.pop(time, None)
        skipped = [time for time, outcome in sorted(outcomes.items()) if outcome.state == "skipped"]
        if skipped:
            period = f"{times.iso(skipped[0])} to {times.iso(skipped[-1])}" if skipped[1:] else times.iso(skipped[0])
            reason = reasons[skipped[-1]]
            log.warning("%s %s: no forecast in %d cycles: %s", feed.domain.name, period, len(skipped), reason)

    def _why_no_frames(self, feed: Feed, reference_times: Sequence[datetime], now: datetime) -> dict[datetime, str]:
        """What is known of frames that did not come in time, or never."""
        domain, f, v = feed.domain, tables.frames.c, tables.volumes.c
        grace = timedelta(seconds=domain.lateness.grace_s)
        # over before anything was at work again: whether something had come is not known until it is read
        missed = [time for time in reference_times if feed.away[0] < time + grace <= feed.away[1]]
        reasons = {time: too_late(feed.away[1]) for time in missed}
        wanted = f.valid_time.in_([times.seconds(time) for time in reference_times])
        framed = self.catalog.read(sa.select(f.valid_time).where(f.domain == domain.name, wanted))
        reasons = {tables.from_seconds(row["valid_time"]): too_late(now) for row in framed} | reasons  # it came since
        row = self.catalog.read(sa.select(tables.feeds).where(tables.feeds.c.domain == domain.name))[0]
        half = domain.cadence / 2
        first, last = times.seconds(min(reference_times) - half), times.seconds(max(reference_times) + half)
        near = sa.or_(v.nominal_time.between(first, last), v.slot.between(first, last))
        query = sa.select(v.key, v.state, v.reason, v.slot, v.nominal_time).where(v.domain == domain.name, near)
        arrived: dict[datetime, list[str]] = defaultdict(list)
        for volume in [] if row["fault"] else self.catalog.read(query.order_by(v.seen_at.desc())):
            slot = volume["slot"] or times.seconds(
                times.nearest_slot(tables.from_seconds(volume["nominal_time"]), domain.cadence)
            )
            arrived[tables.from_seconds(slot)].append(volume["reason"] or f"{volume['key']} {volume['state']}")
        for time in reference_times:
            if time in reasons:
                continue
            known = row["fault"] or "; ".join(arrived[time][:3]) or "nothing arrived for it"
            reasons[time] = f"no frame of {times.iso(time)} within {domain.lateness.grace_s / 60:g} minutes: {known}"
        return reasons

    def _wait_for_others(self, due: Sequence[Wanted], now: datetime) -> float:
        """Seconds to wait for domains whose frame of the same time is about to come, so that all go together."""
        instants = {wanted.domain.name: wanted.reference_time for wanted in due}
        late = [
            feed
            for feed in self.feeds
            if feed.domain.name not in instants
            and feed.first_open <= max(instants.values())
            and times.is_slot(max(instants.values()), feed.domain.cadence)
            and now < max(instants.values()) + timedelta(seconds=feed.domain.lateness.deadline_s)
        ]
        first = min(feed.due_since for feed in self.feeds if feed.due_since is not None)
        left = self.settings.live.batch_wait_s - (now - first).total_seconds()
        return left if late else 0.0

    def _shadow(self, wanted: Wanted) -> None:
        """What was forecast, once more by a challenger that runs beside: one at a time, while nothing is due."""
        try:
            row = promotion.in_shadow(self.catalog, wanted.domain)
            if row is None:
                return

            def load(domain: Domain, spacing_m: float) -> nowcast.Methods:
                return self._loader.of(domain, spacing_m, promotion.Candidate(row["name"], row["checksum"]))

            for outcome in issue(self.store, self.catalog, load, [wanted], promotion.SHADOW, self.clock):
                if outcome.error is not None:
                    log.warning("%s in shadow: %s", outcome.domain, outcome.reason)
        except NowcastError as err:
            log.warning("nothing is forecast in shadow: %s", err)
        except Exception as err:  # the challenger harms nobody
            log.exception("nothing is forecast in shadow")
            if not machine_fault(err):
                self._report(wanted.domain.name, reason_of(err))

    def _issue_batch(self, wanted: Sequence[Wanted]) -> list[Outcome]:
        return list(issue(self.store, self.catalog, self._loader.methods, wanted, "issued", self.clock))

    def _learn(self, outcomes: Iterable[Outcome]) -> None:
        feeds = {feed.domain.name: feed for feed in self.feeds}
        again = self.clock.now() + RETRY
        for outcome in outcomes:
            feed = feeds[outcome.domain]
            feed.due_since = None
            for fault in outcome.faults:
                self._report(outcome.domain, fault)
            feed.failure.pop(outcome.reference_time, None)
            if outcome.state == "published":
                feed.retry.pop(outcome.reference_time, None)
                continue
            feed.retry[outcome.reference_time] = again
            if outcome.state in {"failed", "held"}:
                feed.failure[outcome.reference_time] = outcome.reason


def _first_needed(feed: Feed) -> datetime:
    """Of the frames that decide on the open instants, the oldest."""
    return feed.first_open - max(feed.domain.input_frames, OF_FRAMES) * feed.domain.cadence
