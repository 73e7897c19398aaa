"""The cluster's one secret and what is derived from it: no socket, no clock, and nothing but the standard library.

The secret is a file's content; the guardian reads it as root, and it goes no further. From it, by HKDF-SHA256
(RFC 5869), come two CURVE secret keys and a name that says nothing of them:

    node     the servers' key on all three tcp ports, and the key with which nodes come to each other
    client   the key with which clients come to the clients' port
    name     eight hexadecimal digits for people, who compare them between nodes

The resource's name goes into each, so that a client of one clone is a stranger to another.
"""

import errno
import grp
import os
import pwd
import stat

SECRET_LEAST_BYTES = 32
SECRET_MOST_BYTES = 64 * 1024
KEY_BYTES = 32  # of Curve25519
CLIENT_FILE_MOST_BYTES = 4096
CLIENT_FILE_HINT = "foodctl client-key, run on a node, makes one"
# All nodes must have the same one, or they form no cluster. Pacemaker's authkey, for remote nodes, is no substitute:
# Debian's package makes another one on every machine.
CLUSTER_SECRET = "/etc/corosync/authkey"
# Whoever is one of them can have anything run as root by Pacemaker.
TRUSTED_USER, TRUSTED_GROUP = "hacluster", "haclient"
SALT = b"food"
SHA256_BYTES = 32


class KeyMissing(ValueError):
    """There is no secret where one is looked for."""


class KeyUnusable(ValueError):
    """The file named cannot be used; the text says why and what to do."""


class Keys:
    """The daemon's keys. Not a tuple: nothing that prints it may print them."""

    __slots__ = ("client", "name", "node", "source")

    def __init__(self, node: bytes, client: bytes, name: str, source: str) -> None:
        self.node = node
        self.client = client
        self.name = name
        self.source = source

    def packet(self) -> dict[str, str]:
        """For the pipe to the daemon, and for nothing else."""
        return {"node": self.node.hex(), "client": self.client.hex(), "name": self.name, "source": self.source}

    @staticmethod
    def of_packet(packet: dict[str, str]) -> "Keys":
        return Keys(bytes.fromhex(packet["node"]), bytes.fromhex(packet["client"]), packet["name"], packet["source"])


class ClientKeys:
    """What a client needs: the servers' public key and its own secret one."""

    __slots__ = ("secret", "server")

    def __init__(self, server: bytes, secret: bytes) -> None:
        self.server = server
        self.secret = secret

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClientKeys) and (self.server, self.secret) == (other.server, other.secret)

    def __hash__(self) -> int:
        return hash((self.server, self.secret))


# --- Derivation ---


def hkdf(secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869 with SHA-256: extract, then expand."""
    from hmac import digest  # 2 ms: the guardian pays them while its daemon starts

    extracted = digest(salt or bytes(SHA256_BYTES), secret, "sha256")
    block, found = b"", b""
    for number in range(1, (size + SHA256_BYTES - 1) // SHA256_BYTES + 1):
        block = digest(extracted, block + info + bytes([number]), "sha256")
        found += block
    return found[:size]


def derive(secret: bytes, resource: str, source: str) -> Keys:
    """Another `1` here would be other keys: nodes of both kinds would be strangers to each other."""
    node, client, name = (
        hkdf(secret, SALT, f"food 1 {purpose} {resource}".encode(), size)
        for purpose, size in (("CURVE node", KEY_BYTES), ("CURVE client", KEY_BYTES), ("name", 4))
    )
    return Keys(node, client, name.hex(), source)


# --- The secret's file ---


def read_secret(path: str | None) -> tuple[bytes, str]:
    """The secret and where it was found. Raises KeyMissing, KeyUnusable."""
    try:
        return _read(path or CLUSTER_SECRET), path or CLUSTER_SECRET
    except FileNotFoundError:
        pass
    if path:
        raise KeyUnusable(f"key_file {path} is not there: put the same file on every node, or unset key_file")
    raise KeyMissing(
        f"no key: {CLUSTER_SECRET} is not there: run corosync-keygen and copy it to every node, or set key_file"
    )


def _read(path: str) -> bytes:
    """The file's bytes, if nobody else can read or change them."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeyUnusable(f"key file {path} cannot be read: {error.strerror}") from None
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise KeyUnusable(f"key file {path} is not a regular file")
        _guarded(path, state)
        secret = os.read(descriptor, SECRET_MOST_BYTES + 1)
    except OSError as error:
        raise KeyUnusable(f"key file {path} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if not SECRET_LEAST_BYTES <= len(secret) <= SECRET_MOST_BYTES:
        raise KeyUnusable(
            f"key file {path} has {len(secret) if len(secret) <= SECRET_MOST_BYTES else 'more'} bytes: must have"
            f" {SECRET_LEAST_BYTES} to {SECRET_MOST_BYTES}, random ones (head -c 64 /dev/urandom)"
        )
    return secret


def _guarded(path: str, state: os.stat_result) -> None:
    if state.st_uid not in (0, os.geteuid(), _number("passwd", TRUSTED_USER)):
        raise KeyUnusable(f"key file {path} belongs to another user: chown root {path}")
    if state.st_mode & 0o027 or (state.st_mode & 0o040 and state.st_gid not in (0, _number("group", TRUSTED_GROUP))):
        mode = stat.S_IMODE(state.st_mode)
        raise KeyUnusable(f"key file {path} has mode {mode:04o}, open to others: chmod 0400 {path}")


def _number(kind: str, name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid if kind == "passwd" else grp.getgrnam(name).gr_gid
    except KeyError:
        return None


# --- The client's file ---


def client_file(keys: ClientKeys, comment: str) -> str:
    return (
        f"# food, a client's key ({comment}). Whoever holds it can read and write everything.\n"
        f"server-public {keys.server.hex()}\n"
        f"client-secret {keys.secret.hex()}\n"
    )


def read_client_file(path: str) -> ClientKeys:
    """Raises KeyUnusable."""
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & 0o007:
                raise KeyUnusable(f"key file {path} is open to everybody: chmod 0600 {path}")
            lines = file.read(CLIENT_FILE_MOST_BYTES).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.errno != errno.EINVAL else "it is no text"
        raise KeyUnusable(f"key file {path} cannot be read: {reason}; {CLIENT_FILE_HINT}") from None
    found = dict(line.split(None, 1) for line in lines if len(line.split()) == 2 and not line.startswith("#"))
    try:
        server, secret = (bytes.fromhex(found[name]) for name in ("server-public", "client-secret"))
    except (KeyError, ValueError):
        server = secret = b""
    if len(server) != KEY_BYTES or len(secret) != KEY_BYTES:
        raise KeyUnusable(
            f"key file {path} is no client's key file; {CLIENT_FILE_HINT} (the cluster's own secret stays there)"
        )
    return ClientKeys(server, secret)
