"""What is wrong with an archive of `torch.save` is found without torch; the checkpoint tests damage whole files."""

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from espnet3_lite.checkpoint.archives import DamagedArchiveError, verified


def archive_damage(file):
    with ThreadPoolExecutor(1) as executor:
        try:
            with verified(file, executor):
                return None
        except DamagedArchiveError as error:
            return str(error)


@pytest.fixture
def content():
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(50.0)}, buffer)
    return bytearray(buffer.getvalue())


def test_a_whole_archive_is_whole(content):
    assert archive_damage(io.BytesIO(content)) is None


def test_every_flipped_bit_of_a_tensor_is_found(content):
    start = content.index(torch.arange(50.0).numpy().tobytes())
    for place in range(start, start + 200, 9):
        content[place] ^= 1
        assert archive_damage(io.BytesIO(content)) == "damaged: the checksum (CRC) of 'archive/data/0' is wrong"
        content[place] ^= 1


def test_what_is_no_archive_of_torch_is_named(content):
    assert archive_damage(io.BytesIO(b"")).startswith("not a checkpoint: it does not begin")
    assert archive_damage(io.BytesIO(content[:-30])).startswith("truncated: the archive's table of contents")
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.txt", "b")
    other.seek(0)
    assert archive_damage(other) == "not a checkpoint: an archive without data.pkl"


@pytest.mark.parametrize(("numbers", "in_a_thread"), [(50, 0), (2**18, 1)])
def test_a_thread_looks_at_the_checksums_of_a_large_archive(numbers, in_a_thread, monkeypatch):
    submitted, submit = [], ThreadPoolExecutor.submit
    monkeypatch.setattr(ThreadPoolExecutor, "submit", lambda self, work: submitted.append(work) or submit(self, work))
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(float(numbers))}, buffer)
    content = bytearray(buffer.getvalue())
    assert archive_damage(io.BytesIO(content)) is None
    content[content.index(torch.arange(50.0).numpy().tobytes()) + 100] ^= 1
    assert archive_damage(io.BytesIO(content)) == "damaged: the checksum (CRC) of 'archive/data/0' is wrong"
    assert len(submitted) == 2 * in_a_thread
