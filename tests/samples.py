"""Where the published sample records are; they are no part of the project."""

import os
from pathlib import Path

import pytest

SAMPLES = Path(os.environ.get("CARECHAIN_SAMPLES", Path(__file__).parents[1].parent / "shared" / "data"))


def sample_files(*folders: str, suffix: str = ".json") -> list[Path]:
    """Return the sample files of these folders, or skip the test that asks."""
    found = sorted(path for folder in folders for path in (SAMPLES / folder).glob(f"*{suffix}"))
    if not found:
        pytest.skip(f"no sample data at {SAMPLES}: set CARECHAIN_SAMPLES")
    return found
