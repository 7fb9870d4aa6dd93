"""A file that the machine cannot read now (no descriptors left, a disk that fails) is no damaged file."""

import errno

# what the system says of a name, and of a position in a file, which a damaged file can bring about too
_OF_FILES = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL})


def is_of_machine(err: Exception) -> bool:
    """Whether an error tells of the machine, and nothing of the content of a file."""
    return isinstance(err, OSError) and bool(err.errno) and err.errno not in _OF_FILES
