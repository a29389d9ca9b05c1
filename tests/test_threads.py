"""Work shared out among threads: every item once, errors seen, nobody left behind."""

import os
import threading
import time

import numpy as np
import pytest
import torch

from anyres.ops import team
from anyres.ops.threads import alone, share, share_out


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


@pytest.fixture(params=[True, False], ids=["looking", "sleeping"])
def looks(request, monkeypatch):
    """With numba threads look for work before they sleep; without, they sleep at once."""
    if request.param:
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(team, "has_numba", lambda: False)


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("within", [True, False])
def test_every_item_is_worked_on_once(within):
    done, on = np.zeros((40, 30), int), set()

    def all_of_it():
        for row in done:

            def work(i, row=row):
                row[i] += 1
                on.add(threading.get_ident())
                assert torch.get_num_threads() == 1
                time.sleep(1e-4 if i % 7 == 0 else 0)

            share(work, range(30))

    if within:
        alone(all_of_it)
    else:
        all_of_it()
    assert (done == 1).all()
    assert 2 <= len(on) <= (3 if within else 4)  # the pool has three beside the caller


@pytest.mark.usefixtures("looks")
def test_what_others_raise_is_raised_and_the_team_goes_on():
    caller, begun = threading.get_ident(), threading.Event()

    def work(i):
        if threading.get_ident() != caller:
            begun.set()
            raise ValueError(f"item {i}")
        assert begun.wait(10)

    def all_of_it():
        with pytest.raises(ValueError, match="item 9"):
            share(work, range(10))
        done = []
        share(done.append, range(10))
        return sorted(done)

    assert alone(all_of_it) == list(range(10))


def test_a_caller_who_fails_waits_for_those_who_work():
    caller, begun, ended = threading.get_ident(), threading.Event(), []

    def work(i):
        if threading.get_ident() == caller:
            assert begun.wait(10)
            raise KeyboardInterrupt
        begun.set()
        time.sleep(0.05)
        ended.append(i)

    with pytest.raises(KeyboardInterrupt):
        share(work, range(3))
    assert 1 <= len(ended) <= 2


def test_shares_within_shares_and_of_several_callers():
    done = np.zeros((4, 8, 8), int)

    def caller(number):
        # Of this thread, which takes over what was set last.
        torch.set_num_threads(3)

        def outer(i):
            def inner(j):
                done[number, i, j] += 1

            share(inner, range(8))

        alone(lambda: share(outer, range(8)))

    callers = [threading.Thread(target=caller, args=(n,)) for n in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(30)
    assert (done == 1).all()


def test_a_queue_gives_each_piece_once_and_phases_wait():
    numba = pytest.importorskip("numba")
    from anyres.ops.pieces import finish, take, wait

    @numba.njit(nogil=True)
    def work(queue, counts, sums, count):
        i = take(queue, count)
        while i >= 0:
            counts[i] += 1
            finish(queue)
            i = take(queue, count)
        wait(queue, count)
        i = take(queue, count, 1)
        while i >= 0:
            sums[i] = counts.sum()  # of the phase before, all of it
            i = take(queue, count, 1)

    counts, sums = np.zeros(5000, np.int64), np.zeros(5000, np.int64)
    share_out(lambda queue: work(queue, counts, sums, 5000), phases=2)
    assert (counts == 1).all()
    assert (sums == 5000).all()


def test_threads_are_let_go():
    alone(lambda: share(lambda _: None, range(10)))
    deadline = time.monotonic() + 10
    pool = team._pool(3, os.getpid())
    while pool._work_queue.qsize() and time.monotonic() < deadline:
        time.sleep(0.01)
    # Each of its threads is free for something else.
    barrier = threading.Barrier(3)
    for future in [pool.submit(barrier.wait, 10) for _ in range(3)]:
        future.result(10)
