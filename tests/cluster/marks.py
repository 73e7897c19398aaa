"""Marks of single tests. Apart from operations.py, which also runs where there is no pytest (tests/soak)."""

from __future__ import annotations

import pytest
from cluster.operations import LONG

only_long = pytest.mark.skipif(not LONG, reason="takes minutes: tests/run --long")
