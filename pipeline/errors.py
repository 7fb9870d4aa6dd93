"""The errors that a caller treats differently; how faults of the machine, the data and the software are told apart.

Everything else is a built-in.
"""

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# what the system says of a path or of a position in a file, which a damaged file can bring about too
_OF_DATA = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP})
# of the reason of what failed for no reason that we foresaw
SOFTWARE_FAULT = "a fault of the software"
_OURS = Path(__file__).resolve().parents[1]
_FRAMES_SHOWN = 4
# how HDF5 passes on what the system said, in errors of any type
_ERRNO = re.compile(r"\berrno = (\d+), error message = '([^']*)'")


class NowcastError(Exception):
    """Base of the errors that are not bugs; its text is written for the person who runs the command."""


class SettingsError(NowcastError):
    """A setting is missing, unknown or out of range."""


class BadInput(NowcastError):
    """A received file cannot be used. It is quarantined with this text; the rest goes on."""


class OtherQuantity(BadInput):
    """A received file is whole, but holds something else than the domain takes in. It is left alone with this text."""


class DamagedFrame(NowcastError):
    """An object of the archive cannot be decoded; the frame counts as missing."""


class NotForecast(NowcastError):
    """A cycle issues no forecast; the text is the recorded reason."""


class ModelRefused(NowcastError):
    """A checkpoint is damaged or was not trained for this domain; the fallback runs with this reason."""


class StoreUnavailable(NowcastError):
    """The store or the catalog cannot be reached, is read-only, full, or has another schema or format."""


class WorkerLost(NowcastError):
    """A process of ours was killed from outside; what it had not finished was not done."""


class AtWork(NowcastError):
    """Another process does the same at this moment."""


class LeaseLost(NowcastError):
    """Another process holds the lease, so this one must not publish."""


class ConditionFailed(NowcastError):
    """An object was not written: it exists already, or is not the version any more that it was to replace."""


class RootInUse(NowcastError):
    """Another process runs the service of this root."""


class NotAlive(NowcastError):
    """The live process shows no sign of life."""


def machine_fault(err: BaseException) -> str:
    """What the machine could not do (no descriptors or memory left, a disk or a mount that fails); empty if it did.

    A wrong checksum, a codec or a parser that gives up, a file that is cut short or absent are faults of the data.
    What lies behind an error (its cause, or the error during which it was raised) counts too.
    """
    seen: set[int] = set()
    link: BaseException | None = err
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, MemoryError) or type(link).__name__ == "OutOfMemoryError":
            return "not enough memory"
        if isinstance(link, RuntimeError) and "can't start new thread" in str(link):
            return "no thread can be started"
        if isinstance(link, ImportError) and "cannot open shared object" in str(link):
            return str(link)
        if isinstance(link, OSError) and link.errno and link.errno not in _OF_DATA:
            return link.strerror if link.strerror and "\n" not in link.strerror else _hdf5_words(link)
        if (found := _ERRNO.search(str(link))) and int(found[1]) not in _OF_DATA | {0}:
            return found[2]
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return ""


def _hdf5_words(err: OSError) -> str:
    found = _ERRNO.search(str(err))
    return found[2] if found else f"error {err.errno}"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A fault of the machine while a file of a store is read becomes ``StoreUnavailable``.

    That the file is absent, or that its content is wrong, is left to the caller.

    Raises:
        StoreUnavailable: names the file, and what the system said.
    """
    try:
        yield
    except NowcastError:
        raise
    except Exception as err:
        if fault := machine_fault(err):
            raise StoreUnavailable(f"cannot read {path}: {fault}") from err
        raise


def reason_of(err: BaseException) -> str:
    """Why something failed, in one line to be recorded.

    Of an error that nobody foresaw it is the type, the text and where it was raised: our innermost functions, the last
    one first.
    """
    text = (str(err).splitlines() or [type(err).__name__])[0]
    if isinstance(err, NowcastError):
        return text
    if fault := machine_fault(err):
        return f"the machine failed: {fault}"
    frames = [frame for frame in traceback.extract_tb(err.__traceback__) if Path(frame.filename).is_relative_to(_OURS)]
    places = [f"{Path(f.filename).relative_to(_OURS).as_posix()}:{f.lineno} {f.name}" for f in frames[-_FRAMES_SHOWN:]]
    where = f" ({' < '.join(reversed(places))})" if places else ""
    return f"{SOFTWARE_FAULT}: {type(err).__name__}: {text}{where}"
