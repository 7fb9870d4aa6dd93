"""The errors that a caller treats differently. Everything else is a built-in."""


class NowcastError(Exception):
    """Base of the errors that are not bugs; its text is written for the person who runs the command."""


class SettingsError(NowcastError):
    """A setting is missing, unknown or out of range."""


class BadInput(NowcastError):
    """A received file cannot be used. It is quarantined with this text; the rest goes on."""


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
