"""A node's monotonic time: its own zero, its own speed, and leaps forward. Never the same as the world's or another's.

food/daemon.py's Clock lets a pause count for PAUSE_MOST_MS at most; here leaps are longer, and speeds further apart
than any machine's.
"""

from __future__ import annotations

SPEEDS = (0.5, 0.9, 1.0, 1.1, 2.0)


class Clock:
    def __init__(self, zero_ms: int = 0) -> None:
        self._shown_ms, self._since_ms = zero_ms, 0
        self._speed = 1.0

    def read(self, world_ms: int) -> int:
        return self._shown_ms + int((world_ms - self._since_ms) * self._speed)

    def change(self, world_ms: int, *, speed: float = 1.0, leap_ms: int = 0) -> None:
        """Goes on from here at that speed, after a leap."""
        self._shown_ms, self._since_ms = self.read(world_ms) + leap_ms, world_ms
        self._speed = speed
