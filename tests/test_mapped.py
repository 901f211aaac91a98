"""service.mapped: what one process writes another reads, and there is room for it."""

from pathlib import Path

import pytest

from service.mapped import mapped


def test_what_one_writes_the_other_reads(tmp_path: Path) -> None:
    """Of one file, for this user's eyes, which is as it was when it is mapped again."""
    path = tmp_path / "one"
    with mapped(path, 5000) as one, mapped(path, 5000) as other:
        assert one[:] == bytes(5000)
        one[4999] = 7
        assert other[4999] == 7
    with mapped(path, 5000) as again:
        assert again[4999] == 7
    assert path.stat().st_mode & 0o777 == 0o600


def test_there_is_room_for_all_of_it(tmp_path: Path) -> None:
    """Before anything is written: a hole could not be filled on a full disk."""
    with mapped(tmp_path / "one", 1_000_000):
        assert (tmp_path / "one").stat().st_blocks * 512 >= 1_000_000


def test_no_room_is_an_error(tmp_path: Path) -> None:
    """And no signal later."""
    with pytest.raises(OSError, match=r"File too large|No space left"):
        mapped(tmp_path / "one", 1 << 60)
