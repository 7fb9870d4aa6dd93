"""The version of the software: the number of ``pyproject.toml`` and the commit it runs from."""

import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path


@lru_cache(maxsize=1)
def software_version() -> str:
    """For example 0.1.0+1a2b3c4; ``.dirty`` is appended where tracked files were changed."""
    number = version("nowcast-pipeline")
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=.dirty", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=5, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return number  # not a checkout
    return f"{number}+{described}"
