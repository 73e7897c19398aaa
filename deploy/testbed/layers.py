"""Which directory can carry the nodes' overlay file systems: asked of the kernel, by trying."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from testbed import layout
from testbed.errors import LabError


def choose_base() -> Path:
    """The first of layout.BASES that works as an overlay's upper layer. LabError names what the kernel said."""
    reasons = []
    for base in layout.BASES:
        reason = _try(base)
        if not reason:
            return base
        reasons.append(f"{base}: {reason}")
    raise LabError(
        "no directory can carry an overlay file system, which the nodes need over /usr and /etc "
        f"({'; '.join(reasons)}); run as root outside of containers, or in a privileged one, on a kernel with overlay"
    )


def _try(base: Path) -> str:
    """Mount an overlay over /etc in a mount namespace of its own. Empty if that works."""
    made = not base.exists()
    try:
        base.mkdir(exist_ok=True)
        trial = Path(tempfile.mkdtemp(prefix=".trial-", dir=base))
    except OSError as error:
        return str(error)
    try:
        for name in ("upper", "work"):
            (trial / name).mkdir()
        options = f"lowerdir=/etc,upperdir={trial}/upper,workdir={trial}/work"
        done = subprocess.run(
            ["unshare", "--mount", "mount", "-n", "-t", "overlay", "-o", options, "overlay", "/etc"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stderr.strip() if done.returncode else ""
    finally:
        shutil.rmtree(trial, ignore_errors=True)
        if made:
            base.rmdir()
