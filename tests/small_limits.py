"""The daemon with limits so small that a test reaches them: compaction, snapshots of many pieces, small batches."""

from __future__ import annotations

import os
import sys

import food.core.donor
import food.core.following
import food.core.local
import food.core.replica
import food.core.snapshot
import food.storage
from food.daemon import main

food.core.local.FLUSH_ENTRIES = 20
food.core.local.FLUSH_MS = 50
food.core.local.KEEP_ENTRIES = 40
food.core.snapshot.CHUNK_MOST_BYTES = 2_000
food.storage.FOLD_BYTES = 256 * 1024
if pace := os.environ.get("PACE_BYTES_PER_MS"):
    food.core.donor.PACE_BYTES_PER_MS = food.core.donor.PACE_BURST_BYTES = int(pace)

sys.exit(main())
