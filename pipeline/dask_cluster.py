"""Workers of a Dask cluster, for a backfill on more than one machine; needs the extra ``[dask]``.

Plain ``distributed``: its executor is that of ``concurrent.futures``, so the same code as for ``--workers`` hands out
the chunks, with a Prefect server or without one.
"""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import SettingsError, StoreUnavailable, WorkerLost
from pipeline.settings import Settings
from pipeline.storage import open_store

LOCAL = "local"
CONNECT_S = 10.0


@contextmanager
def connect(settings: Settings, address: str, workers: int) -> Iterator[tuple[Executor, int]]:
    """An executor over the workers of a cluster, and how many there are.

    Args:
        address: of a scheduler, as ``tcp://host:8786``; ``local`` starts ``workers`` processes on this machine.

    Raises:
        SettingsError: Dask is not installed, or the cluster is not fit for the work.
        StoreUnavailable: no scheduler answers.
        WorkerLost: the workers were killed, again and again.
    """
    try:
        import distributed
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError
    except ImportError as err:
        raise SettingsError(
            "--dask needs the package `distributed`; install it with `pip install -c constraints.txt -e '.[dask]'`"
        ) from err
    if address != LOCAL and urlsplit(address).scheme not in {"tcp", "tls", "ws", "wss"}:
        raise SettingsError(f"--dask {address}: expected `local` or the address of a scheduler, as tcp://host:8786")
    untyped: Any = distributed
    with ExitStack() as held:
        if address == LOCAL:
            folder = held.enter_context(open_store(settings).scratch())
            # processes of one thread: HDF5 in threads crashes
            at: Any = held.enter_context(
                untyped.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=None,
                    local_directory=str(folder),
                    silence_logs=40,
                )
            )
        else:
            at = address
        try:
            client = held.enter_context(untyped.Client(at, timeout=CONNECT_S, set_as_default=False))
        except OSError as err:  # TimeoutError is one
            raise StoreUnavailable(f"no Dask scheduler answers at {address} within {CONNECT_S:.0f} s: {err}") from err
        found = client.scheduler_info(n_workers=-1)["workers"]
        _check(settings, address, found)
        try:
            yield client.get_executor(pure=False, retries=0), len(found)
        except (KilledWorker, FutureCancelledError) as err:
            raise WorkerLost(
                f"the workers at {address} were killed, or the scheduler ended: {err}; what was published stands, the "
                "same command goes on"
            ) from err


def _check(settings: Settings, address: str, workers: dict[str, Any]) -> None:
    """The cluster has workers, of one thread each, that can reach the catalog."""
    if not workers:
        raise SettingsError(f"the Dask scheduler at {address} has no workers")
    for name, worker in workers.items():
        if worker["nthreads"] != 1:
            raise SettingsError(
                f"the Dask worker {name} has {worker['nthreads']} threads, expected 1, since HDF5 in threads crashes; "
                "start it with `dask worker --nthreads 1 --nworkers N`"
            )
    hosts = {worker["host"] for worker in workers.values()}
    if len(hosts) > 1 and settings.catalog.startswith("sqlite:"):
        raise SettingsError(
            f"the Dask workers run on {len(hosts)} machines ({', '.join(sorted(hosts))}), and the catalog is an SQLite "
            "file, which serves one; move it to PostgreSQL first"
        )
