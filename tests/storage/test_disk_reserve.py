import shutil
from pathlib import Path

import pytest

from protocol.errors import StorageFull
from storage.disk_reserve import check_quota, check_reserve, free_share


def test_free_share_is_a_share(tmp_path: Path) -> None:
    assert 0 < free_share(tmp_path) < 1


def test_the_reserve_is_kept_also_for_what_is_about_to_be_written(tmp_path: Path) -> None:
    check_reserve(tmp_path, reserve=0.0)
    with pytest.raises(StorageFull, match=r"keeps 100\.0% for the ledger"):
        check_reserve(tmp_path, reserve=1.0)
    with pytest.raises(StorageFull):
        check_reserve(tmp_path, adding=shutil.disk_usage(tmp_path).free, reserve=0.01)


def test_a_quota_that_is_used_up_is_told_with_the_way_out() -> None:
    check_quota(10, 0)
    check_quota(9, 10)
    with pytest.raises(StorageFull, match=r"storage_quota_bytes in config\.toml"):
        check_quota(10, 10)
