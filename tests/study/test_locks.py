"""Who works on a cell: one living process, and never two."""

import json
import os
import signal
import threading
import traceback
from dataclasses import replace

import pytest

from twinsight.study import locks
from twinsight.study.locks import Holder, Lock, Observer
from twinsight.study.shards import WHOLE, Shard, bury, other_workers, shard_lock


class Clock:
    """Seconds that a test moves on."""

    now = 100.0

    def __call__(self):
        return self.now


def foreign(folder, generation=1, **changes):
    """A lock held on another machine, where nobody here can tell whether its process lives."""
    facts = {"host": "far", "pid": 7, "machine": "another boot", "born": "1", "beat": 3, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{generation}.json").write_text(json.dumps(facts))


def killed_holder(folder):
    """A lock whose process took it and died at once."""
    pid = os.fork()
    if not pid:
        try:
            if Lock(folder).take():
                os.kill(os.getpid(), signal.SIGKILL)
        except BaseException:
            traceback.print_exc()
        finally:  # else this would be one more process that runs the tests
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def test_one_holds_it_until_it_is_released(tmp_path):
    first, second = Lock(tmp_path), Lock(tmp_path)
    assert first.take()
    assert not second.take()
    assert second.holder().pid == os.getpid()
    first.release()
    assert second.take()
    assert not first.take()
    second.release()


def test_of_many_that_try_at_once_one_gets_it(tmp_path):
    contenders = [Lock(tmp_path) for _ in range(16)]
    start, got = threading.Barrier(16), []

    def try_it(lock):
        start.wait()
        got.append(lock.take())

    threads = [threading.Thread(target=try_it, args=(lock,)) for lock in contenders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 1
    for lock in contenders:
        lock.release()


@pytest.mark.faults
def test_a_process_that_died_on_this_machine_is_known_to_be_dead_at_once(tmp_path):
    killed_holder(tmp_path)
    lock = Lock(tmp_path)
    assert lock.holder().dead
    assert lock.take()
    lock.release()


def test_a_process_of_the_same_number_that_was_born_later_is_another(tmp_path):
    lock = Lock(tmp_path)
    assert lock.take()
    mine = lock.holder()
    assert not mine.dead
    assert replace(mine, born="0").dead
    lock.release()


@pytest.mark.faults
def test_a_silent_holder_elsewhere_is_dead_after_a_minute_of_the_observers_own_clock(tmp_path):
    clock = Clock()
    observer, lock = Observer(clock=clock), Lock(tmp_path)
    foreign(tmp_path)
    assert not lock.take(observer)
    clock.now += 59.9
    assert not lock.take(observer)
    clock.now += 0.2
    assert lock.take(observer)
    assert [path.name for path in tmp_path.glob("2.json")]
    lock.release()


def test_a_holder_whose_counter_moves_is_alive_however_long_it_takes(tmp_path):
    clock = Clock()
    observer, lock = Observer(clock=clock), Lock(tmp_path)
    for beat in range(5):
        foreign(tmp_path, beat=beat)
        assert not lock.take(observer)
        clock.now += 59.0
    assert observer.moved(tmp_path.parent)


@pytest.mark.faults
def test_a_holder_that_slept_while_another_took_over_learns_that_it_has_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    lock = Lock(tmp_path)
    assert lock.take()
    foreign(tmp_path, generation=2)
    lock._thread.join(timeout=10)
    assert lock.lost
    lock.release()
    assert Lock(tmp_path).holder().host == "far"  # what the other holds is left alone


def test_a_living_holder_gives_signs_of_life_and_calls_back(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    called = threading.Event()
    lock = Lock(tmp_path, called.set)
    assert lock.take()
    assert called.wait(10)
    assert lock.holder().beat >= 1
    lock.release()
    assert lock.holder().released


@pytest.mark.faults
def test_a_full_disk_ends_no_work(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    lock = Lock(tmp_path)
    assert lock.take()
    tried = threading.Event()

    def full(path, content):
        tried.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(locks, "write_json", full)
    assert tried.wait(10)
    assert lock._thread.is_alive()
    lock.release()


def test_a_lock_that_was_never_written_counts_as_silent(tmp_path):
    (tmp_path / "1.json").touch()
    clock = Clock()
    observer = Observer(clock=clock)
    assert not Lock(tmp_path).take(observer)
    clock.now += 61
    lock = Lock(tmp_path)
    assert lock.take(observer)
    lock.release()


def test_shards_of_one_count_work_side_by_side_and_the_whole_beside_none(tmp_path):
    one = Lock(shard_lock(tmp_path, Shard(0, 2)))
    assert one.take()
    assert other_workers(tmp_path, Shard(1, 2)) == []
    assert len(other_workers(tmp_path, Shard(0, 3))) == 1
    assert len(other_workers(tmp_path, WHOLE)) == 1
    assert other_workers(tmp_path, Shard(0, 2)) == []
    assert len(other_workers(tmp_path, Shard(0, 2), itself=True)) == 1
    one.release()
    assert other_workers(tmp_path, WHOLE) == []


def test_burying_takes_locks_from_the_dead_and_leaves_those_of_the_living(tmp_path):
    killed_holder(shard_lock(tmp_path, Shard(0, 2)))
    assert bury(tmp_path, Observer())
    living = Lock(shard_lock(tmp_path, Shard(1, 2)))
    assert living.take()
    assert not bury(tmp_path, Observer())
    living.release()
    assert bury(tmp_path, Observer())


@pytest.mark.parametrize("beat", [0, -1])
def test_a_released_holder_is_gone(beat):
    holder = Holder(1, "far", 7, "another boot", "1", beat)
    assert Observer(clock=Clock()).gone(None, holder) is (beat < 0)
