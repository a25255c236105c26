"""The cache bounded in bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from foveate.cache import ByteCache


def test_the_least_recently_used_value_is_dropped_first():
    cache: ByteCache[str] = ByteCache(10)
    cache.put("a", "A", 4)
    cache.put("b", "B", 4)
    assert cache.get("a") == "A"
    cache.put("c", "C", 4)
    assert cache.get("b") is None
    assert (cache.get("a"), cache.get("c")) == ("A", "C")
    assert cache.held_bytes == 8


def test_a_value_larger_than_the_limit_is_not_cached():
    cache: ByteCache[str] = ByteCache(10)
    cache.put("a", "A", 4)
    cache.put("a", "AA", 11)
    assert cache.get("a") is None
    assert cache.held_bytes == 0


def test_drop_where_forgets_one_file():
    cache: ByteCache[int] = ByteCache(100)
    for file in (1, 2):
        for block in range(3):
            cache.put((file, block), block, 5)
    cache.drop_where(1)
    assert cache.held_bytes == 15
    assert cache.get((1, 0)) is None
    assert cache.get((2, 2)) == 2


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=60))
def test_the_cache_never_exceeds_its_limit(puts):
    cache: ByteCache[int] = ByteCache(64)
    last = {}
    for key, n_bytes in puts:
        cache.put(key, n_bytes, n_bytes)
        last[key] = n_bytes
        assert cache.held_bytes <= 64
        values = [cache.get(k) for k in range(10)]
        assert cache.held_bytes == sum(v for v in values if v is not None)
        assert cache.get(key) == last[key]


def test_sizes_stay_correct_with_many_threads():
    cache: ByteCache[int] = ByteCache(50)

    def work(thread: int) -> None:
        for i in range(500):
            cache.put((thread, i % 7), i, i % 13)
            cache.get(((thread + 1) % 8, i % 7))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    values = [cache.get((t, b)) for t in range(8) for b in range(7)]
    assert cache.held_bytes == sum(v % 13 for v in values if v is not None) <= 50
