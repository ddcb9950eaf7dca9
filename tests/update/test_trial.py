"""One attempt per version, decided by the installation from what is on the disk."""

import os

import attrs
import pytest

from meshnode.errors import UpdateBlocked, UpdateError
from meshnode.update.pointer import Pointer, Trial, load_pointer, load_seen, save_pointer, save_seen
from meshnode.update.release import Seen
from meshnode.update.trial import (
    Ended,
    activate,
    begin,
    choose,
    confirm,
    is_tried_elsewhere,
    keep_store,
    restore_store,
    slots_there,
)
from meshnode.update.updater import Publisher

BOTH = frozenset({"2.0", "3.0"})
TRIED = Pointer(current="3.0", previous="2.0", trial=Trial(tries=1, pid=7, started=1.0))


def chosen(pointer, *, ended=None, has_slot=BOTH, installation="1.0"):
    return choose(pointer, installation=installation, ended=ended, has_slot=has_slot)


def test_without_a_pointer_the_installation_runs():
    assert chosen(Pointer()).version is None


def test_a_confirmed_version_runs_and_one_on_trial_is_tried():
    assert chosen(Pointer(current="2.0")).version == "2.0"
    fresh = Pointer(current="3.0", previous="2.0", trial=Trial())
    assert (chosen(fresh).version, chosen(fresh).pointer) == ("3.0", fresh)


def test_a_trial_that_ended_with_its_process_leads_back_to_the_version_before():
    start = chosen(TRIED)
    assert (start.version, start.taken_back) == ("2.0", "3.0")
    assert start.pointer == Pointer(current="2.0", failed={"3.0": "its process ended before it was ready"})


def test_the_guards_reason_is_kept():
    start = chosen(TRIED, ended=Ended("it was not ready within 40 s"))
    assert start.pointer.failed == {"3.0": "it was not ready within 40 s"}


def test_a_trial_that_somebody_stopped_is_tried_again_but_not_for_ever():
    pointer = chosen(TRIED, ended=Ended()).pointer
    assert (pointer.current, pointer.trial) == ("3.0", Trial(tries=1))
    pointer = chosen(Pointer(current="3.0", previous="2.0", trial=Trial(tries=3))).pointer
    assert (pointer.current, list(pointer.failed)) == ("2.0", ["3.0"])


def test_of_a_first_version_the_way_back_is_the_installation():
    start = chosen(Pointer(current="3.0", trial=Trial(1, 7, 1.0)))
    assert (start.version, start.pointer.current) == (None, None)


def test_code_that_is_gone_does_not_run():
    assert chosen(Pointer(current="3.0", previous="2.0"), has_slot=frozenset({"2.0"})).version == "2.0"
    assert chosen(Pointer(current="3.0", previous="2.0"), has_slot=frozenset()).version is None


@pytest.mark.parametrize("installation", ["3.0", "3.1"])
def test_an_installation_that_was_upgraded_by_hand_runs_itself(installation):
    start = chosen(Pointer(current="3.0", previous="2.0"), installation=installation)
    assert (start.version, start.pointer) == (None, Pointer())


def test_a_pointer_is_read_as_it_was_written_and_begins_and_ends_a_trial(tmp_path):
    activate(tmp_path, "2.0")
    assert load_pointer(tmp_path) == Pointer(current="2.0", trial=Trial())
    with pytest.raises(UpdateBlocked, match="is on trial"):
        activate(tmp_path, "3.0")
    save_pointer(tmp_path, begin(load_pointer(tmp_path), os.getpid()))
    assert load_pointer(tmp_path).trial.tries == 1
    assert confirm(tmp_path) == "2.0"
    assert confirm(tmp_path) is None
    activate(tmp_path, "3.0")
    assert load_pointer(tmp_path) == Pointer(current="3.0", previous="2.0", trial=Trial())


def test_what_failed_is_never_tried_again(tmp_path):
    save_pointer(tmp_path, Pointer(failed={"3.0": "it ended with status 1"}))
    with pytest.raises(UpdateBlocked, match="tried here and taken back: it ended with status 1"):
        activate(tmp_path, "3.0")


def test_a_pointer_that_cannot_be_read_is_said(tmp_path):
    (tmp_path / "current.json").write_text("{")
    with pytest.raises(UpdateError, match="delete it to begin anew"):
        load_pointer(tmp_path)
    save_pointer(tmp_path, Pointer(format=2))
    with pytest.raises(UpdateError, match="has format 2"):
        load_pointer(tmp_path)


def test_a_full_disk_leaves_the_pointer_as_it_was(tmp_path):
    save_pointer(tmp_path, Pointer(current="2.0"))
    (tmp_path / "current.new").symlink_to("/dev/full")
    with pytest.raises(UpdateError, match=r"cannot write .*No space left"):
        save_pointer(tmp_path, Pointer(current="3.0"))
    assert load_pointer(tmp_path).current == "2.0"


def test_what_was_seen_survives(tmp_path):
    assert load_seen(tmp_path, "stable/a") == Seen()
    save_seen(tmp_path, "stable/a", Seen(5, "2.0", "ab"))
    save_seen(tmp_path, "beta/a", Seen(50, "3.0", "cd"))
    assert load_seen(tmp_path, "stable/a") == Seen(5, "2.0", "ab")
    assert load_seen(tmp_path, "beta/a") == Seen(50, "3.0", "cd")


def test_another_channel_and_other_keys_count_anew_and_the_order_of_keys_does_not_matter():
    publisher = Publisher("https://x", frozenset({b"a", b"b"}), 2, "stable")
    assert publisher.stream == Publisher("https://y", frozenset({b"b", b"a"}), 1, "stable").stream
    others = [attrs.evolve(publisher, channel="beta"), attrs.evolve(publisher, keys=frozenset({b"a"}))]
    assert len({each.stream for each in [publisher, *others]}) == 3


def test_a_process_that_tries_is_told_from_one_with_the_same_number():
    own = begin(Pointer(current="3.0", trial=Trial()), os.getpid())
    assert is_tried_elsewhere(own, pid=1)
    assert not is_tried_elsewhere(own, pid=os.getpid())
    assert not is_tried_elsewhere(TRIED, pid=os.getpid())  # number 7, if it lives, is younger than 1970
    assert not is_tried_elsewhere(Pointer(current="3.0", trial=Trial()), pid=1)


def test_the_database_is_put_back_once(tmp_path):
    folder, store = tmp_path / "updates", tmp_path / "store"
    folder.mkdir()
    store.mkdir()
    (store / "a").write_text("before")
    keep_store(folder, store)
    (store / "a").write_text("after")
    restore_store(folder, store)
    assert (store / "a").read_text() == "before"
    (store / "a").write_text("later")
    restore_store(folder, store)
    assert (store / "a").read_text() == "later"


def test_what_lies_there_from_an_earlier_trial_is_not_what_is_put_back(tmp_path):
    folder, store = tmp_path / "updates", tmp_path / "store"
    folder.mkdir()
    store.mkdir()
    for text in ("old", "new"):
        (store / "a").write_text(text)
        keep_store(folder, store)
    restore_store(folder, store)
    assert (store / "a").read_text() == "new"


def test_a_slot_is_there_when_its_folder_is(tmp_path):
    (tmp_path / "slots" / "2.0").mkdir(parents=True)
    assert slots_there(tmp_path, TRIED) == {"2.0"}
