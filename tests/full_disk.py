"""The daemon on a disk that is nearly full."""

from __future__ import annotations

import sys

from food.daemon import main
from food.storage import Store

_open = Store.__init__


def _open_nearly_full(self: Store, *arguments: object) -> None:
    _open(self, *arguments)  # type: ignore[arg-type]
    self._sql("PRAGMA max_page_count=100")


Store.__init__ = _open_nearly_full  # type: ignore[method-assign,assignment]
sys.exit(main())
