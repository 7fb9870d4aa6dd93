"""System calls that fail as on a disk that goes bad, or in a process that has used up its descriptors.

What Python code reaches of the system (``open``, ``os.*``) and what h5py asks of HDF5 is wrapped, for paths below some
folders; SQLite's own calls are not. ``few_descriptors`` is the real thing, and meets every library.
"""

import builtins
import errno
import io
import os
import random
import resource
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

FAULTS = (errno.EIO, errno.EMFILE)
# they take a path, and the last two a second one
OF_PATHS = ("stat", "listdir", "scandir", "mkdir", "rmdir", "unlink", "remove", "rename", "replace")
OF_DESCRIPTORS = ("read", "pread", "write", "fsync", "fstat")


class FailingCalls:
    """Wraps the calls of this process once; they fail while ``share`` is not 0.

    Args:
        folders: below them calls fail.
        spared: beginning of the paths that are left alone.

    Attributes:
        share: of the calls fails.
        happened: how many did, by call.
    """

    def __init__(self, folders: Sequence[Path], spared: Path, seed: int) -> None:
        self.share, self.happened = 0.0, Counter[str]()
        self._below = tuple(f"{folder}{os.sep}" for folder in folders)
        self._spared, self._random = str(spared), random.Random(seed)
        self._descriptors: set[int] = set()
        for name in OF_PATHS:
            setattr(os, name, self._of_path(name, getattr(os, name)))
        for name in OF_DESCRIPTORS:
            setattr(os, name, self._of_descriptor(name, getattr(os, name)))
        self._wrap_opening()
        self._wrap_hdf5()

    def meet(self, call: str, *paths: object, kinds: tuple[int, ...] = FAULTS, words: str = "{}") -> None:
        """Fail now and then, if one of the paths is below the folders."""
        if not self.share or not any(map(self._is_meant, paths)) or self._random.random() >= self.share:
            return
        self.happened[call] += 1
        number = self._random.choice(kinds)
        raise OSError(number, words.format(os.strerror(number)), str(paths[0]))

    def _is_meant(self, path: object) -> bool:
        if isinstance(path, int):
            return path in self._descriptors
        try:
            name = os.fsdecode(path)  # type: ignore[arg-type]
        except TypeError:
            return False
        return name.startswith(self._below) and not name.startswith(self._spared)

    def _of_path(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.meet(name, *arguments[:2], options.get("dir_fd"))
            return call(*arguments, **options)

        return wrapped

    def _of_descriptor(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(descriptor: int, *arguments: Any) -> Any:
            self.meet(name, descriptor, kinds=(errno.EIO,))
            return call(descriptor, *arguments)

        return wrapped

    def _wrap_opening(self) -> None:
        os_open, os_close, io_open = os.open, os.close, io.open

        def open_descriptor(path: Any, *arguments: Any, **options: Any) -> int:
            self.meet("open", path, options.get("dir_fd"))
            descriptor = os_open(path, *arguments, **options)
            if self._is_meant(path) or options.get("dir_fd") in self._descriptors:
                self._descriptors.add(descriptor)
            return descriptor

        def close_descriptor(descriptor: int) -> None:
            self._descriptors.discard(descriptor)
            os_close(descriptor)

        def open_file(file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **options: Any) -> Any:
            if not self.share or isinstance(file, int) or not self._is_meant(file):
                return io_open(file, mode, buffering, *arguments, **options)
            self.meet("open", file)
            raw = _FailingFile(self, file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
            buffered = kind(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *arguments, **options)

        os.open, os.close = open_descriptor, close_descriptor
        io.open = builtins.open = open_file  # type: ignore[assignment]

    def _wrap_hdf5(self) -> None:
        """In the words of h5py 3, which carry those of the system."""
        of_file = (
            "Unable to synchronously {} file (unable to open file: name = '{}', errno = 5, error message = '{{}}')"
        )
        for name in ("open", "create"):

            def wrapped(
                path: Any, *arguments: Any, name: str = name, of: Any = getattr(h5py.h5f, name), **options: Any
            ):
                self.meet(f"hdf5 {name}", path, kinds=(errno.EIO,), words=of_file.format(name, os.fsdecode(path)))
                return of(path, *arguments, **options)

            setattr(h5py.h5f, name, wrapped)
        of_data = "Can't synchronously {} data (file {} failed: errno = 5, error message = '{{}}')"
        for name, word in (("__getitem__", "read"), ("__setitem__", "write")):

            def of_dataset(dataset: Any, *arguments: Any, word: str = word, of: Any = getattr(h5py.Dataset, name)):
                if self.share:
                    words = of_data.format(word, word)
                    self.meet(f"hdf5 {word}", dataset.file.filename, kinds=(errno.EIO,), words=words)
                return of(dataset, *arguments)

            setattr(h5py.Dataset, name, of_dataset)


class _FailingFile(io.FileIO):
    """A file whose reads and writes fail; a write then has done half of its work."""

    def __init__(self, calls: FailingCalls, path: Any, mode: str) -> None:
        self._calls = calls
        super().__init__(path, mode)

    def _meet(self, call: str) -> None:
        self._calls.meet(call, self.name, kinds=(errno.EIO,))

    def read(self, size: int | None = -1) -> bytes | None:  # type: ignore[override]
        self._meet("read of a file")
        return super().read(-1 if size is None else size)

    def readall(self) -> bytes:
        self._meet("read of a file")
        return super().readall()

    def readinto(self, buffer: Any) -> int | None:  # type: ignore[override]
        self._meet("read of a file")
        return super().readinto(buffer)

    def write(self, content: Any) -> int | None:  # type: ignore[override]
        try:
            self._meet("write of a file")
        except OSError:
            super().write(memoryview(content)[: len(content) // 2])
            raise
        return super().write(content)


@contextmanager
def few_descriptors(more: int | None) -> Iterator[None]:
    """Let this process open so many descriptors besides those that it has now; None is no such limit."""
    if more is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] < highest:  # free ones between those in use
        taken.append(os.dup(taken[0]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1 + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
