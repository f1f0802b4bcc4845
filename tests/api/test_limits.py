"""The token bucket and the bounds on what is in flight."""

from __future__ import annotations

import pytest

from dakera_cluster.api.limits import MAX_BUCKETS, UNLIMITED, Admission, RateLimiter
from dakera_cluster.model.errors import OverloadedError, RateLimitedError

NOW = 1_000.0


def test_a_burst_passes_and_the_next_request_is_told_when() -> None:
    limiter = RateLimiter(rps=10, burst=3)
    assert [limiter.take("a", NOW).remaining for _ in range(3)] == [2, 1, 0]
    with pytest.raises(RateLimitedError) as raised:
        limiter.take("a", NOW)
    assert raised.value.retry_after_s == 1


def test_tokens_come_back_at_the_rate() -> None:
    limiter = RateLimiter(rps=10, burst=2)
    limiter.take("a", NOW)
    limiter.take("a", NOW)
    with pytest.raises(RateLimitedError):
        limiter.take("a", NOW + 0.09)
    limiter.take("a", NOW + 0.1)
    with pytest.raises(RateLimitedError):
        limiter.take("a", NOW + 0.15)
    assert limiter.take("a", NOW + 100).remaining == 1


def test_a_slow_rate_names_the_whole_wait_in_whole_seconds() -> None:
    limiter = RateLimiter(rps=1, burst=1)
    limiter.take("a", NOW)
    with pytest.raises(RateLimitedError) as raised:
        limiter.take("a", NOW + 0.25)
    assert raised.value.retry_after_s == 1
    assert isinstance(raised.value.retry_after_s, int)


def test_over_a_long_time_no_more_than_rate_times_time_plus_burst_pass() -> None:
    limiter = RateLimiter(rps=50, burst=20)
    passed = 0
    for tick in range(10_000):
        try:
            limiter.take("a", NOW + tick / 1_000)
        except RateLimitedError:
            continue
        passed += 1
    assert 50 * 10 <= passed <= 50 * 10 + 20


def test_callers_do_not_share_tokens_and_refusals_cost_none() -> None:
    limiter = RateLimiter(rps=1, burst=1)
    limiter.take("a", NOW)
    for _ in range(10):
        with pytest.raises(RateLimitedError):
            limiter.take("a", NOW)
    limiter.take("b", NOW)
    limiter.take("a", NOW + 1)


def test_looking_takes_nothing() -> None:
    limiter = RateLimiter(rps=10, burst=5)
    limiter.take("a", NOW)
    for _ in range(3):
        allowance = limiter.peek("a", NOW)
        assert (allowance.limit, allowance.remaining) == (10, 4)
        assert allowance.reset_s == pytest.approx(0.1)


def test_a_rate_of_zero_limits_nothing() -> None:
    limiter = RateLimiter(rps=0, burst=1)
    assert not limiter.enabled
    for _ in range(100):
        assert limiter.take("a", NOW).remaining == UNLIMITED


def test_buckets_of_callers_long_gone_are_dropped() -> None:
    limiter = RateLimiter(rps=1, burst=1)
    for caller in range(MAX_BUCKETS + 50):
        limiter.take(str(caller), NOW)
    assert len(limiter._full_at) == MAX_BUCKETS


def test_admission_refuses_over_its_bounds_and_recovers() -> None:
    admission = Admission(max_requests=2, max_body_bytes=100)
    admission.enter()
    admission.enter()
    with pytest.raises(OverloadedError) as raised:
        admission.enter()
    assert raised.value.retry_after_s == 1
    admission.leave()
    admission.enter()
    admission.reserve(60)
    with pytest.raises(OverloadedError):
        admission.reserve(41)
    admission.release(60)
    admission.reserve(100)


def test_admission_is_idle_when_all_have_left() -> None:
    admission = Admission(max_requests=2, max_body_bytes=1)
    assert admission.idle.is_set()
    admission.enter()
    assert not admission.idle.is_set()
    admission.leave()
    assert admission.idle.is_set()
