from __future__ import annotations

from petzval.inference.fair_queue import FairQueue


def _drained(queue: FairQueue[str]) -> list[str]:
    found: list[str] = []
    while (item := queue.take()) is not None:
        found.append(item)
    return found


def test_one_owner_is_served_in_order_of_arrival_within_a_priority() -> None:
    queue: FairQueue[str] = FairQueue()
    for name, priority in [("a", 0), ("b", 1), ("c", 0), ("d", -1), ("e", 1)]:
        queue.put(name, owner="x", cost=1.0, priority=priority)
    assert list(queue) == ["b", "e", "a", "c", "d"]
    assert _drained(queue) == ["b", "e", "a", "c", "d"]
    assert queue.take() is None


def test_a_newcomer_does_not_wait_behind_a_flood() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.put(f"flood {number}", owner="many", cost=1.0, priority=1)
    queue.put("one", owner="few", cost=1.0)
    assert "one" in [queue.take() for _ in range(3)]


def test_owners_share_by_cost_not_by_number() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(60):
        queue.put(f"small {number}", owner="small", cost=1.0)
        queue.put(f"large {number}", owner="large", cost=5.0)
    first = [queue.take() or "" for _ in range(60)]
    small = sum(name.startswith("small") for name in first)
    large = 5 * (60 - small)
    assert abs(small - large) <= 10


def test_a_weight_is_a_share() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(90):
        queue.put(f"a{number}", owner="a", cost=1.0, weight=2.0)
        queue.put(f"b{number}", owner="b", cost=1.0, weight=1.0)
    first = [queue.take() or "" for _ in range(90)]
    assert abs(sum(name[0] == "a" for name in first) - 60) <= 2


def test_companions_are_charged_for() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(20):
        queue.put(f"a{number}", owner="a", cost=1.0)
        queue.put(f"b{number}", owner="b", cost=1.0)
    queue.take()
    taken = queue.take_companions(lambda name: name[0] == "a", 8)
    assert taken == [f"a{number}" for number in range(20) if f"a{number}" in taken]
    assert len(taken) == 8
    following = [queue.take() or "" for _ in range(8)]
    assert sum(name[0] == "b" for name in following) >= 7


def test_what_is_removed_is_not_served() -> None:
    queue: FairQueue[str] = FairQueue()
    for name in ("a1", "b1", "a2"):
        queue.put(name, owner=name[0], cost=1.0)
    assert queue.remove(lambda name: name.startswith("a")) == ["a1", "a2"]
    assert len(queue) == 1 and _drained(queue) == ["b1"]


def test_who_was_alone_owes_nothing_when_another_comes() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.put(f"a{number}", owner="a", cost=1.0)
    for _ in range(80):
        queue.take()
    for number in range(20):
        queue.put(f"b{number}", owner="b", cost=1.0)
    first = [queue.take() or "" for _ in range(20)]
    assert abs(sum(name[0] == "a" for name in first) - 10) <= 1
