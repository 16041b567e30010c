import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tiny_models import write_family

from ladle.merging.family import Family, load_family
from ladle.merging.materialised import BudgetError, MaterialisedCache
from ladle.merging.merge import Merge
from ladle.merging.weights_key import WeightsKey

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("family")
    return load_family(write_family(folder, "llama", 3, full=("bone-positive", "bone-simple"), policies=False))


def key(family: Family, share: float) -> WeightsKey:
    return WeightsKey.of(family.base_revision, {"bone-positive": share, "bone-simple": 1 - share})


def expected(family: Family, share: float) -> torch.Tensor:
    one, two = (family.full[name].reader.tensor(NAME).double() for name in ("bone-positive", "bone-simple"))
    return (share * one + (1 - share) * two).float()


class CountingMerge:
    """The real merge, counted and (on demand) slow or failing."""

    def __init__(self, family: Family) -> None:
        self._merge = Merge.of(family)
        self.layout = self._merge.layout
        self.calls = 0
        self.delay_s = 0.0
        self.fail = False

    def into(self, out: dict[str, torch.Tensor], coefficients: dict[str, float]) -> None:
        self.calls += 1
        time.sleep(self.delay_s)
        if self.fail:
            raise OSError("disk gone")
        self._merge.into(out, coefficients)


@pytest.fixture
def merge(family: Family) -> Iterator[CountingMerge]:
    yield CountingMerge(family)


def cache_of(merge: CountingMerge, family: Family, entries: float) -> MaterialisedCache:
    return MaterialisedCache(merge, int(entries * family.base.nbytes()))  # type: ignore[arg-type]


def test_hits_do_not_merge_again(family: Family, merge: CountingMerge) -> None:
    cache = cache_of(merge, family, 2)
    for _ in range(3):
        with cache.lease(key(family, 0.25)) as weights:
            torch.testing.assert_close(weights[NAME], expected(family, 0.25))
    stats = cache.stats()
    assert (merge.calls, stats.hits, stats.misses, stats.entries_in_use) == (1, 2, 1, 0)
    assert stats.bytes == family.base.nbytes() <= stats.budget


def test_the_least_recently_used_goes_and_its_memory_stays(family: Family, merge: CountingMerge) -> None:
    cache = cache_of(merge, family, 2)
    with cache.lease(key(family, 0.1)):
        pass
    with cache.lease(key(family, 0.2)) as weights:
        address = weights[NAME].data_ptr()
    with cache.lease(key(family, 0.1)):  # now 0.2 is the oldest
        pass
    with cache.lease(key(family, 0.3)) as weights:
        assert weights[NAME].data_ptr() == address
        torch.testing.assert_close(weights[NAME], expected(family, 0.3))
    with cache.lease(key(family, 0.1)):
        assert merge.calls == 3
    assert cache.stats().evictions == 1 and cache.stats().entries == 2


def test_what_is_in_use_is_never_evicted(family: Family, merge: CountingMerge) -> None:
    cache = cache_of(merge, family, 1)
    with cache.lease(key(family, 0.1)) as weights:
        with pytest.raises(BudgetError, match="in use"), cache.lease(key(family, 0.2)):
            pass
        with cache.lease(key(family, 0.1)) as again:
            assert again[NAME] is weights[NAME]
        torch.testing.assert_close(weights[NAME], expected(family, 0.1))
    with cache.lease(key(family, 0.2)) as weights:
        torch.testing.assert_close(weights[NAME], expected(family, 0.2))


def test_waiting_ends_when_a_lease_does(family: Family, merge: CountingMerge) -> None:
    cache = cache_of(merge, family, 1)
    entered = threading.Event()

    def hold() -> None:
        with cache.lease(key(family, 0.1)):
            entered.set()
            time.sleep(0.05)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(30)
    with cache.lease(key(family, 0.2), timeout_s=30) as weights:
        torch.testing.assert_close(weights[NAME], expected(family, 0.2))
    thread.join()


def test_one_entry_must_fit(family: Family, merge: CountingMerge) -> None:
    cache = cache_of(merge, family, 0.5)
    with pytest.raises(BudgetError, match=f"{family.base.nbytes():,} bytes"), cache.lease(key(family, 0.1)):
        pass
    assert cache.stats().entries == 0


def test_dtype_is_the_caches(family: Family) -> None:
    cache = MaterialisedCache(Merge.of(family), family.base.nbytes() // 2, torch.bfloat16)
    with cache.lease(key(family, 0.4)) as weights:
        assert weights[NAME].dtype == torch.bfloat16
        torch.testing.assert_close(weights[NAME], expected(family, 0.4).bfloat16())


def test_many_askers_one_merge(family: Family, merge: CountingMerge) -> None:
    merge.delay_s = 0.05
    cache = cache_of(merge, family, 2)
    barrier = threading.Barrier(6)

    def ask(_: int) -> torch.Tensor:
        barrier.wait(30)
        with cache.lease(key(family, 0.5)) as weights:
            return weights[NAME].clone()

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    assert merge.calls == 1
    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_a_failed_merge_is_forgotten(family: Family, merge: CountingMerge) -> None:
    cache = cache_of(merge, family, 1)
    merge.fail = True
    with pytest.raises(OSError, match="disk gone"), cache.lease(key(family, 0.5)):
        pass
    with pytest.raises(KeyError, match="nobody"), cache.lease(WeightsKey.of("", {"nobody": 1.0})):
        pass
    assert cache.stats().entries == 0
    merge.fail = False
    with cache.lease(key(family, 0.5)) as weights:
        torch.testing.assert_close(weights[NAME], expected(family, 0.5))


def test_threads_never_see_weights_of_another_key(family: Family, merge: CountingMerge, seed: int) -> None:
    cache = cache_of(merge, family, 2)  # two fit, three threads want five: constant eviction and waiting
    shares = [0.1, 0.2, 0.3, 0.4, 0.5]
    wanted = {share: expected(family, share) for share in shares}

    def work(number: int) -> None:
        for share in np.random.default_rng(seed + number).choice(shares, size=40).tolist():
            with cache.lease(key(family, share), timeout_s=60) as weights:
                before = weights[NAME].clone()
                torch.testing.assert_close(before, wanted[share])
                time.sleep(0.0005)
                assert torch.equal(weights[NAME], before)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    stats = cache.stats()
    assert stats.hits + stats.misses == 120 and stats.entries_in_use == 0
    assert stats.bytes <= stats.budget and merge.calls == stats.misses
