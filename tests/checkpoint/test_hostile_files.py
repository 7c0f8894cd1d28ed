"""Files that an attacker or an accident made: read, or refused by a message, within two seconds."""

import io
import os
import pickle
import time
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint

from espnet3_lite.checkpoint import files
from espnet3_lite.checkpoint.files import CheckpointError, load_checkpoint, newest_intact, save_checkpoint
from espnet3_lite.checkpoint.sharded import METADATA_FILE, read_metadata

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of pickle protocols in flipped bits


@pytest.fixture(autouse=True)
def within_two_seconds(request):
    begin = time.process_time()  # what else the machine does is not this file's fault
    yield
    assert time.process_time() - begin < 2 or "slow" in request.keywords


def nested_tuples(depth):
    value = (1,)
    for _ in range(depth):
        value = (value, value)
    return value


def pickled_into(path, instructions):
    """An archive of torch.save whose ``data.pkl`` holds these instructions."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, instructions if name.endswith("data.pkl") else content)
    return path


def test_shared_tuples_are_looked_through_once(tmp_path):
    torch.save({"a": nested_tuples(24)}, tmp_path / "bomb.ckpt")
    loaded = load_checkpoint(tmp_path / "bomb.ckpt")
    assert loaded["a"][0] is loaded["a"][1]
    save_checkpoint(loaded, tmp_path / "again.ckpt")
    assert os.path.getsize(tmp_path / "again.ckpt") < 5000


#: A tuple of 60 levels, each of which holds the one below twice: 2 to the 60th values.
ENDLESS = b"K\x01\x85q\x01" + b"h\x01h\x01\x86q\x01" * 60


@pytest.mark.parametrize(
    "instructions",
    [
        b"}" + ENDLESS + b"K\x01s",
        b"}(" + ENDLESS + b"K\x01u",
        b"c__builtin__\nfrozenset\n" + ENDLESS + b"\x85R",
        b"c__builtin__\nfrozenset\n](" + ENDLESS + b"e\x85R",
        b"]]q\x02aq\x03h\x02(" + ENDLESS + b"K\x01e\x86ccollections\nOrderedDict\nh\x03\x85R\x86",
        b"(U\x07storage" + ENDLESS + b"tQ",
        # No single key is endless, but a list of 5,000 names for one of 2,000 values is.
        b"(" + b"K\x01" * 2000 + b"tq\x01](" + b"h\x01" * 5000 + b"eq\x02\x86c__builtin__\nfrozenset\nh\x02\x85R\x86",
        # Each level takes the processor's stack, which ends the process.
        b"}K\x01" + b"\x85" * 200_000 + b"K\x01s",
    ],
    ids=["a key", "keys", "in a set", "in a list", "in a list that grew later", "a storage", "many times", "deep"],
)
def test_tuples_that_would_be_hashed_for_ever(tmp_path, instructions):
    path = pickled_into(tmp_path / "bomb.ckpt", b"\x80\x02}U\x01a" + instructions + b"s.")
    with pytest.raises(CheckpointError, match=r"bomb\.ckpt: forged: its values are so nested that to read them"):
        load_checkpoint(path)
    assert files.damage(path)


def test_a_forged_order_of_bytes_is_not_hashed(tmp_path):
    instructions = b"cnumpy\ndtype\nU\x02f4\x85R(K\x03" + ENDLESS + b"tb"
    path = pickled_into(tmp_path / "bomb.ckpt", b"\x80\x02}U\x01a" + instructions + b"s.")
    assert load_checkpoint(path)["a"].order == "="


def test_keys_that_people_have_are_read(tmp_path):
    state = {("a", (1, 2)): torch.ones(2), 3: {(k, k): [k] for k in range(1000)}}
    torch.save(state, tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt")[3] == state[3]


def test_lists_that_are_nested_too_deeply(tmp_path):
    pickled_into(tmp_path / "deep.ckpt", b"\x80\x02}U\x01a" + b"]" * 100_000 + b"a" * 99_999 + b"s.")
    with pytest.raises(CheckpointError, match=r"deep\.ckpt: its values are nested too deeply for a checkpoint"):
        load_checkpoint(tmp_path / "deep.ckpt")


def test_what_contains_itself_is_not_written(tmp_path):
    value = [1]
    value.append(value)
    with pytest.raises(TypeError, match="checkpoint is nested too deeply, or contains itself"):
        save_checkpoint({"a": value}, tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (b"c__builtin__\nbytes\n\x8a\x06\x00\x00\x00\x00\x00\x20\x85R", r"bytes\(int\), which no checkpoint needs"),
        (b"c__builtin__\nbytes\n\x8a\x05\x00\x00\x00\x00\x01\x85R", r"bytes\(int\), which no checkpoint needs"),
        (b"c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x20\x85R", "MemoryError"),
        (b"c__builtin__\nstr\n(K\x01t\x85R", r"str\(tuple\), which no checkpoint needs"),
        (b"cdatetime\ntimedelta\n\x8a\x06\x00\x00\x00\x00\x00\x20\x85R", "OverflowError"),
    ],
)
def test_calls_that_take_memory_or_fail(tmp_path, instructions, message):
    path = pickled_into(tmp_path / "call.ckpt", b"\x80\x02}U\x01a" + instructions + b"s.")
    with pytest.raises(CheckpointError, match=rf"call\.ckpt: .*{message}"):
        load_checkpoint(path)
    assert files.damage(path)


def test_a_small_archive_of_many_zeros(tmp_path):
    save_checkpoint({"w": torch.zeros(10)}, tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="not written by torch.save, which does not compress"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_an_archive_that_names_the_same_bytes_often(tmp_path):
    save_checkpoint({"w": torch.zeros(1000)}, tmp_path / "a.ckpt")
    content = (tmp_path / "a.ckpt").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        start, count = archive.start_dir, len(archive.infolist())
        with open(tmp_path / "a.ckpt", "r+b") as file:
            archive.fp = file
            archive.mode, archive._didModify, archive._comment = "a", True, b""
            archive.filelist += [entry for entry in archive.infolist() if entry.file_size == 4000] * 1000
            file.seek(start)
            archive._write_end_record()
            archive.fp, archive._didModify = None, False
    assert count < 20
    with pytest.raises(CheckpointError, match="lists more bytes than the file has|Overlapped entries"):
        load_checkpoint(tmp_path / "a.ckpt")


# --- one flipped bit --------------------------------------------------------------------------------------------------


def flips(folder, step, whole_file):
    """Flip every `step`-th bit of a small checkpoint, or of its directory; yields each bit, and what is taken then."""
    save_checkpoint({"epoch": 1, "state_dict": {"w": torch.arange(6.0)}}, folder / "old.ckpt")
    save_checkpoint({"epoch": 2, "state_dict": {"w": torch.arange(6.0) + 1}}, folder / "new.ckpt")
    whole = (folder / "new.ckpt").read_bytes()
    start = 0 if whole_file else whole.index(b"PK\x01\x02")
    for bit in range(start * 8, len(whole) * 8, step):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / "new.ckpt").write_bytes(flipped)
        taken = newest_intact([folder / "new.ckpt", folder / "old.ckpt"])
        yield bit, load_checkpoint(taken)


def check_flips(folder, step, whole_file=False):
    fell_back = 0
    for bit, loaded in flips(folder, step, whole_file):
        older = 2 - loaded["epoch"]
        assert torch.equal(loaded["state_dict"]["w"], torch.arange(6.0) + 1 - older), bit
        fell_back += older
    return fell_back


def test_a_flipped_bit_in_the_directory_ends_no_run_that_has_an_older_state(tmp_path):
    assert check_flips(tmp_path, 149) > 10


@pytest.mark.slow
def test_no_bit_of_a_file_ends_a_run_that_has_an_older_state(tmp_path):
    assert check_flips(tmp_path, 3, whole_file=True) > 1000  # each place of a bit in a byte; step 1 takes minutes


# --- sharded folders --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    state = {"state_dict": {"w": torch.arange(4.0)}, "plain": ({"epoch": 2},)}
    distributed_checkpoint.save(state, checkpoint_id=tmp_path / "step1.ckpt")
    assert files.damage(tmp_path / "step1.ckpt") is None
    return tmp_path / "step1.ckpt"


def forged(folder, change):
    metadata = read_metadata(folder)
    change(metadata)
    (folder / METADATA_FILE).write_bytes(pickle.dumps(metadata))


def set_info(name, value):
    def change(metadata):
        for info in metadata.storage_data.values():
            setattr(info, name, value)

    return change


def set_size(size):
    def change(metadata):
        metadata.state_dict_metadata["state_dict.w"].size = torch.Size(size)

    return change


def set_chunk(size):
    def change(metadata):
        entry = metadata.state_dict_metadata["state_dict.w"]
        entry.size = entry.chunks[0].sizes = torch.Size(size)

    return change


def set_place(*place):
    return lambda metadata: metadata.planner_data.update({"state_dict.w": place})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_info("relative_path", "../secret"), "the data file '../secret' is not one of this folder"),
        (set_info("relative_path", "/etc/passwd"), "the data file '/etc/passwd' is not one of this folder"),
        (set_info("relative_path", 3), "the data file 3 is not one of this folder"),
        (set_info("offset", "0"), "an item of __0_0.distcp at byte '0'"),
        (set_info("offset", -5), "an item of __0_0.distcp at byte -5"),
        (set_info("length", 1.5), "1.5 long"),
        (set_info("length", 2**70), "is truncated"),
        (set_size([2**40]), "has size .1099511627776,., of which 4 values are stored"),
        (set_chunk([2**50]), "its shards cannot be read"),
        (set_place([1]), r"the entry 'state_dict.w', whose place is \(\[1\],\)"),
        (set_place("optimizer_states", "a"), "its entries do not make a checkpoint"),
        (set_place("state_dict", 10**12, "a"), r"whose place is \('state_dict', 1000000000000, 'a'\)"),
        (set_place("state_dict", -1), "whose place is"),
        (lambda metadata: setattr(metadata, "storage_data", [1]), "damaged metadata: AttributeError"),
        (lambda metadata: setattr(metadata, "state_dict_metadata", {1: 2}), "damaged metadata: "),
        (lambda metadata: metadata.state_dict_metadata.update({"w": 3}), "damaged metadata: AttributeError"),
        (lambda metadata: setattr(metadata, "planner_data", 7), "damaged metadata: AttributeError"),
    ],
)
def test_forged_metadata_is_refused_by_a_message(folder, change, message):
    forged(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "bomb",
    [
        b"}" + ENDLESS + b"K\x01s.",  # a key
        ENDLESS + b".",  # a value, which is told in an error, or compared
        b"\x8f(" + ENDLESS + b"\x90.",  # in a set
        b"(" + ENDLESS + b"\x91.",  # in a frozen one
        b"(" + ENDLESS + b"K\x01d.",  # in a dict of older protocols
        b"}K\x01" + b"\x85" * 200_000 + b"K\x01s.",  # deep
        b"}K\x01\x85\x94" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01s.",  # a key, by later protocols' instructions
        pickle.dumps({"a": nested_tuples(30)}, 5),
    ],
)
def test_metadata_that_would_be_hashed_or_walked_for_ever(folder, bomb):
    (folder / METADATA_FILE).write_bytes(b"\x80\x02" + bomb if bomb[:1] != b"\x80" else bomb)
    with pytest.raises(
        CheckpointError, match=r"damaged metadata: DamagedArchiveError: forged: its values are so nested"
    ):
        load_checkpoint(folder)
    assert files.damage(folder)


def test_an_item_that_would_be_hashed_for_ever(folder):
    """The archive of the values that are no tensors, put in the place of the one that torch wrote."""
    pickled_into(folder / "bomb", b"\x80\x02}" + ENDLESS + b"K\x01s.")
    content, metadata = (folder / "bomb").read_bytes(), read_metadata(folder)
    (info,) = [info for index, info in metadata.storage_data.items() if index.fqn == "plain"]
    data = (folder / info.relative_path).read_bytes()
    (folder / info.relative_path).write_bytes(data + content)
    info.offset, info.length = len(data), len(content)
    (folder / METADATA_FILE).write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp, at byte \d+: forged: its values are so nested"):
        load_checkpoint(folder)


def test_the_same_item_under_many_names_is_read_once(folder):
    forged(folder, lambda metadata: metadata.storage_data.update(
        {(name, 0): info for name in range(50_000) for info in list(metadata.storage_data.values())[:1]}
    ))  # fmt: skip
    assert files.damage(folder) is None


def test_items_that_overlap_are_refused(folder):
    def overlap(metadata):
        for index, info in enumerate(metadata.storage_data.values()):
            info.offset, info.length = index, 400

    forged(folder, overlap)
    assert "overlap" in files.damage(folder)
