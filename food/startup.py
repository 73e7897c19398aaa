"""What must be in order before the guardian starts anything: each thing that is not is refused, with its remedy."""

import contextlib
import importlib.util
import os
import pwd
import select
import sys
from collections.abc import Iterator, Mapping

from food import keys, locks, settings
from food.children import Owner
from food.journal import LOG_DIRECTORY, log_file, sockets

EXIT_OK = 0
EXIT_GENERIC = 1
EXIT_ARGUMENTS = 2
EXIT_PERMISSION = 4
EXIT_INSTALLED = 5

NEEDED_MODULES = ("zmq", "msgpack", "sortedcontainers")
PLAINTEXT_HINT = f"plaintext={settings.INSECURE} if anyone may read and write"
PACKAGE_HINT = "python3-zmq, python3-msgpack and python3-sortedcontainers on Debian"


class Refused(Exception):
    """Why the guardian does not start, with the exit status that the agent hands on."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def abandoned() -> bool:
    """Whether whoever started us, and reads our standard error until we stand, has gone."""
    poller = select.poll()
    poller.register(2, 0)
    return any(events & select.POLLERR for _, events in poller.poll(0))


def take_lock(path: str, held: str) -> int:
    try:
        return locks.take(path)
    except locks.Held as found:
        raise Refused(EXIT_GENERIC, held.format(found)) from None
    except OSError as error:
        raise _unlockable(path, error) from None


def share_lock(path: str) -> int:
    try:
        return locks.share(path)
    except locks.Held as found:
        raise Refused(EXIT_GENERIC, f"{found}, which is not food: end it") from None
    except OSError as error:
        raise _unlockable(path, error) from None


def _unlockable(path: str, error: OSError) -> Refused:
    return Refused(EXIT_GENERIC, f"{path} cannot be locked: {error.strerror}; remove it")


def find_owner(name: str) -> Owner:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise Refused(EXIT_INSTALLED, f"user {name!r} does not exist: run deploy/install, or set `user`") from None
    if os.geteuid() != 0:
        if entry.pw_uid != os.geteuid():
            raise Refused(EXIT_PERMISSION, f"must be root to run the daemon as user {name!r}")
        return Owner(name, None, None)
    return Owner(name, entry.pw_uid, entry.pw_gid)


def check_program(program: settings.Value) -> None:
    if program is None:
        return
    name = str(program)
    if not os.path.exists(name):
        raise Refused(EXIT_INSTALLED, f"daemon is {name!r}: no such file; leave it unset for the installed one")
    if not os.path.isfile(name) or not (name.endswith(".py") or os.access(name, os.X_OK)):
        raise Refused(EXIT_INSTALLED, f"daemon is {name!r}: not a program; leave it unset for the installed one")


def own_directory(path: str, mode: int, owner: Owner) -> None:
    """A directory of the owner's. One that has contents of somebody else's is refused rather than taken over."""
    with refused_as(path):
        os.makedirs(path, mode, exist_ok=True)
        state = os.stat(path)
        if owner.uid is None or owner.gid is None:
            return
        if state.st_uid != owner.uid:
            if os.listdir(path) and state.st_uid != 0:
                raise Refused(EXIT_PERMISSION, f"{path} belongs to another user: chown -R {owner.name} {path}")
            os.chown(path, owner.uid, owner.gid)
        os.chmod(path, mode)


@contextlib.contextmanager
def refused_as(path: str) -> Iterator[None]:
    """Whatever keeps a directory from being made ready, with the remedy."""
    try:
        yield
    except OSError as error:
        why = "it is no directory: move it away" if isinstance(error, FileExistsError) else error.strerror
        raise Refused(EXIT_PERMISSION, f"directory {path} cannot be made ready: {why}") from None


def prepare_log(resource: str, owner: Owner) -> None:
    """Where there is neither journal nor syslog, a file that the daemon's user may append to."""
    if sockets():
        return
    with contextlib.suppress(OSError):
        os.makedirs(LOG_DIRECTORY, 0o755, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(log_file(resource), flags, 0o640)
        if owner.uid is not None and owner.gid is not None:
            os.fchown(descriptor, owner.uid, owner.gid)
        os.close(descriptor)


def check_installed() -> None:
    missing = [name for name in NEEDED_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise Refused(EXIT_INSTALLED, f"{sys.executable} lacks {', '.join(missing)}: install {PACKAGE_HINT}")


def read_config_file(path: str | None) -> dict[str, object]:
    if not path:
        return {}
    settings.path("config", path)
    try:
        with open(path, encoding="utf-8") as file:
            return settings.read_config(file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise settings.BadSetting(f"configuration file {path} cannot be read: {error}") from None


def read_secret(settled: Mapping[str, settings.Value]) -> tuple[bytes, str] | None:
    """The secret and its file; None only where plaintext is asked for. Raises KeyMissing, KeyUnusable."""
    path = settled["key_file"]
    return None if settled["plaintext"] == settings.INSECURE else keys.read_secret(str(path) if path else None)


def keys_packet(secret: tuple[bytes, str] | None, resource: str) -> dict[str, str] | None:
    return keys.derive(secret[0], resource, secret[1]).packet() if secret else None
