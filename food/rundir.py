"""The run directory's files: what the guardian leaves for the agent, and for the guardian after it.

The directory is the daemon's user's and the writer is root, so nothing here follows a link.

reason      why the daemon died, or why it does not come up
moving      the daemon of a primary died, and its role is being moved
demoted     Pacemaker has demoted the dead daemon (the agent's)
adopting    a start outside Pacemaker's asks for the daemon: its ticket (the agent's); renamed to:
adopted     the resource that has the daemon
attributes  names of node attributes that a stop has to remove; it is there for as long as there may be something to
            clear
"""

import contextlib
import os
from collections.abc import Iterable

from food import settings
from food.watch import ATTRIBUTES_MOST

REASON_MOST_BYTES = 1000
TICKET_MOST_BYTES = 1000
NAMES_MOST_BYTES = 64 * 1024
WRITTEN = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe under a file's name holds nobody up
LAST_LIFES = ("reason", "demoted", "moving", "control.sock", "client.sock")


class RunDirectory:
    def __init__(self, path: str) -> None:
        self.path = path
        self.attributes: list[str] = []  # names of those that may stand in Pacemaker

    def file(self, name: str) -> str:
        return f"{self.path}/{name}"

    def has(self, name: str) -> bool:
        return os.path.exists(self.file(name))

    def remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.file(name))

    def forget_last_life(self) -> None:
        """Raises OSError."""
        for name in LAST_LIFES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.file(name))

    def write_reason(self, text: str) -> None:
        """For the monitor that finds the daemon gone."""
        with contextlib.suppress(OSError):
            self._replace("reason", text.encode(errors="replace")[:REASON_MOST_BYTES])

    def write_moving(self) -> None:
        """For a monitor of the dead primary: the role is being moved, and a failure would hold that up. Before the
        reason, which the monitor waits for."""
        with contextlib.suppress(OSError):
            os.close(os.open(self.file("moving"), WRITTEN, 0o644))

    # The ticket of a start outside Pacemaker

    def read_ticket(self, name: str) -> tuple[str, str] | None:
        """(resource, Pacemaker's name of this node or nothing), as the agent wrote it; None if it is not there. Raises
        ValueError."""
        try:
            text = self._read(name, TICKET_MOST_BYTES)
        except OSError:
            return None
        try:
            resource, node = text.removesuffix("\n").split("\n")
            return str(settings.identifier("the resource's name", resource)), node
        except ValueError as error:
            raise ValueError(f"{name} in {self.path} is not understood: {error}") from None

    def take_ticket(self) -> None:
        """The adoption. Raises OSError when whoever left the ticket has taken it away."""
        os.rename(self.file("adopting"), self.file("adopted"))

    # Names of attributes

    def recall_attributes(self, prefixes: tuple[str, ...]) -> None:
        """Those that a guardian which was killed wrote, as far as they are food's."""
        with contextlib.suppress(OSError):
            lines = self._read("attributes", NAMES_MOST_BYTES).splitlines()
            self.attributes = [line for line in lines if line.startswith(prefixes)][:ATTRIBUTES_MOST]

    def keep_attributes(self, names: Iterable[str]) -> None:
        """Before any of them is set: what is not noted, a stop would not remove. Raises OSError."""
        new = [name for name in names if name not in self.attributes]
        if not new:
            return
        self.attributes += new
        try:
            self.write_attributes()
        except OSError:
            del self.attributes[-len(new) :]
            raise

    def write_attributes(self) -> None:
        """Raises OSError."""
        self._replace("attributes", "\n".join(self.attributes).encode())

    def forget_attributes(self) -> None:
        self.attributes = []
        self.remove("attributes")

    # Whole files

    def _read(self, name: str, most_bytes: int) -> str:
        """Raises OSError."""
        descriptor = os.open(self.file(name), READ)
        try:
            return os.read(descriptor, most_bytes).decode(errors="replace")
        finally:
            os.close(descriptor)

    def _replace(self, name: str, data: bytes) -> None:
        """Whole or not at all. Raises OSError."""
        temporary = self.file(f"{name}.new")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        descriptor = os.open(temporary, WRITTEN | os.O_EXCL, 0o644)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
        os.rename(temporary, self.file(name))
