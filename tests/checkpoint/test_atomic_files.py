"""Links, copies and removal: a name comes into being whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from espnet3_lite.checkpoint.atomic_files import (
    link_or_copy,
    remove_checkpoint,
    remove_leftovers,
    replacing,
    write_text,
)
from espnet3_lite.exceptions import CheckpointError


def test_a_link_outlives_what_it_was_made_from(tmp_path):
    (tmp_path / "step3.ckpt").write_text("three")
    link_or_copy(tmp_path / "step3.ckpt", tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "step3.ckpt")
    assert not (tmp_path / "last.ckpt").is_symlink()
    remove_checkpoint(tmp_path / "step3.ckpt")
    assert (tmp_path / "last.ckpt").read_text() == "three"
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_link_is_replaced_and_making_it_twice_leaves_nothing_behind(tmp_path):
    for step in ("three", "six"):
        (tmp_path / f"{step}.ckpt").write_text(step)
        for _ in range(2):
            link_or_copy(tmp_path / f"{step}.ckpt", str(tmp_path / "last.ckpt"))
    assert (tmp_path / "last.ckpt").read_text() == "six"
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "six.ckpt", "three.ckpt"]


def test_a_symbolic_link_to_the_file_becomes_a_hard_one(tmp_path):
    (tmp_path / "step3.ckpt").write_text("three")
    (tmp_path / "last.ckpt").symlink_to("step3.ckpt")
    link_or_copy(tmp_path / "step3.ckpt", tmp_path / "last.ckpt")
    remove_checkpoint(tmp_path / "step3.ckpt")
    assert (tmp_path / "last.ckpt").read_text() == "three"


def test_a_link_to_a_link_names_the_file_itself(tmp_path):
    (tmp_path / "step3.ckpt").write_text("three")
    (tmp_path / "alias.ckpt").symlink_to("step3.ckpt")
    link_or_copy(tmp_path / "alias.ckpt", tmp_path / "last.ckpt")
    assert not (tmp_path / "last.ckpt").is_symlink()
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "step3.ckpt")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK])
def test_without_hard_links_it_is_a_copy(tmp_path, monkeypatch, number):
    def refuse(source, destination):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "step3.ckpt").write_text("three")
    link_or_copy(tmp_path / "step3.ckpt", tmp_path / "exp" / "last.ckpt")
    assert (tmp_path / "exp" / "last.ckpt").read_text() == "three"
    assert not (tmp_path / "exp" / "last.ckpt").samefile(tmp_path / "step3.ckpt")
    assert os.listdir(tmp_path / "exp") == ["last.ckpt"]


def test_a_folder_gets_a_relative_link_which_moves_with_its_parent(tmp_path):
    (tmp_path / "exp" / "step3.ckpt").mkdir(parents=True)
    (tmp_path / "exp" / "step3.ckpt" / "data").write_text("three")
    for _ in range(2):
        link_or_copy(tmp_path / "exp" / "step3.ckpt", tmp_path / "exp" / "last.ckpt")
    assert os.readlink(tmp_path / "exp" / "last.ckpt") == "step3.ckpt"
    (tmp_path / "exp").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "last.ckpt" / "data").read_text() == "three"


def test_a_link_replaces_a_file_by_a_folder_and_back(tmp_path):
    (tmp_path / "file.ckpt").write_text("file")
    (tmp_path / "folder.ckpt").mkdir()
    (tmp_path / "last.ckpt").mkdir()
    (tmp_path / "last.ckpt" / "old").write_text("old")
    link_or_copy(tmp_path / "file.ckpt", tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_text() == "file"
    link_or_copy(tmp_path / "folder.ckpt", tmp_path / "last.ckpt")
    assert os.readlink(tmp_path / "last.ckpt") == "folder.ckpt"
    assert sorted(os.listdir(tmp_path)) == ["file.ckpt", "folder.ckpt", "last.ckpt"]


def test_a_link_to_nothing_is_an_error_and_changes_nothing(tmp_path):
    (tmp_path / "last.ckpt").write_text("three")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: could not be linked to .*: .*No such file"):
        link_or_copy(tmp_path / "step6.ckpt", tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_text() == "three"


def test_files_links_and_folders_are_removed_and_what_is_missing_is_fine(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "data").write_text("data")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").write_text("file")
    remove_checkpoint(tmp_path / "link")
    assert (tmp_path / "folder" / "data").read_text() == "data"
    for name in ("folder", "dangling", "file", "missing"):
        remove_checkpoint(str(tmp_path / name))
    assert os.listdir(tmp_path) == []


def test_leftovers_of_dead_processes_are_removed_and_others_kept(tmp_path):
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    names = {
        f".last.ckpt.new.{dead}.tmp": False,
        f".last.ckpt.old.{dead}.tmp": False,
        f".last.ckpt.new.{os.getpid()}.tmp": True,
        ".last.ckpt.new.1.tmp": True,
        f".other.ckpt.new.{dead}.tmp": True,
        ".last.ckpt.new.notes.tmp": True,
    }
    for name in names:
        (tmp_path / name).write_text("half")
    remove_leftovers(tmp_path / "last.ckpt")
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_link_removes_what_a_dead_process_left_of_it(tmp_path):
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    (tmp_path / "step1.ckpt").write_text("state")
    (tmp_path / f".last.ckpt.new.{dead}.tmp").write_text("half")
    link_or_copy(tmp_path / "step1.ckpt", tmp_path / "last.ckpt")
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "step1.ckpt"]


def test_a_temporary_name_is_gone_whatever_happens(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with replacing(tmp_path / "last.ckpt") as temporary:
            Path(temporary).write_text("half")
            assert temporary.parent == tmp_path and temporary.name.startswith(".last.ckpt.")
            raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_text_is_written_at_once_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    write_text(path, "å\n")
    assert path.read_bytes() == "å\n".encode()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "longer than before\n")
    assert path.read_bytes() == "å\n".encode() and [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


def test_what_a_killed_process_left_of_a_text_is_removed(tmp_path):
    left = tmp_path / ".status.json.new.999999999.tmp"
    left.write_text("half")
    write_text(tmp_path / "status.json", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
