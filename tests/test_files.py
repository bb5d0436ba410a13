"""Files that are written whole or not at all."""

import errno
import os

import pytest

from modalscape.engine.store.files import give_name, replace_text, replacement


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_that_cannot_be_completed_leaves_the_old_one_and_nothing_else(tmp_path, durable):
    path = tmp_path / "one.bin"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="full"), replacement(path, durable=durable) as file:
        file.write(b"half")
        assert path.read_bytes() == b"old"
        raise OSError(errno.ENOSPC, "full")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["one.bin"]


def test_only_a_durable_file_is_forced_to_the_disk_and_before_it_gets_its_name(tmp_path, monkeypatch):
    path, forced = tmp_path / "one.bin", []
    monkeypatch.setattr(os, "fsync", lambda number: forced.append((os.fstat(number).st_size, path.exists())))
    for durable in (True, False):
        with replacement(path, durable=durable) as file:
            file.write(b"new")
    assert forced == [(3, False)] and path.read_bytes() == b"new" and os.listdir(tmp_path) == ["one.bin"]


def test_a_text_that_is_none_leaves_nothing(tmp_path):
    with pytest.raises(ValueError):
        replace_text(tmp_path / "note.txt", "\ud800")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("links", [True, False])
def test_of_two_files_one_gets_the_name(tmp_path, monkeypatch, links):
    def refused(source, target):
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    assert give_name(tmp_path / "first", tmp_path / "name") and not give_name(tmp_path / "second", tmp_path / "name")
    assert (tmp_path / "name").read_text() == "first"
