"""The core's clock: a pause of this process is nobody else's silence."""

from __future__ import annotations

import pytest

from food import daemon
from food.daemon import PAUSE_MOST_MS, Clock


def test_time_passes_as_it_does_but_a_pause_counts_little(monkeypatch: pytest.MonkeyPatch) -> None:
    real_ms = 50_000
    monkeypatch.setattr(daemon, "monotonic_ms", lambda: real_ms)
    clock = Clock()
    begun = clock.read()
    for step_ms in (0, 20, PAUSE_MOST_MS):
        real_ms += step_ms
        assert clock.read() - begun == real_ms - 50_000
    before = clock.read()
    real_ms += 10_000
    assert clock.read() - before == PAUSE_MOST_MS
    real_ms += 20
    assert clock.read() - before == PAUSE_MOST_MS + 20
