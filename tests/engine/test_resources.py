"""What a process has of the machine."""

import os
import threading

from exafield.engine.resources import Places


def test_threads_of_a_pool_have_a_core_each_whoever_starts_them() -> None:
    own = os.sched_getaffinity(0)
    keep, found = Places(), list[set[int]]()

    def first() -> None:
        second()
        other = threading.Thread(target=second)
        other.start()
        other.join()

    def second() -> None:
        keep()
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=first)
    thread.start()
    thread.join()
    order = sorted(own)
    assert found == [{order[0]}, {order[1 % len(order)]}]
    assert os.sched_getaffinity(0) == own
