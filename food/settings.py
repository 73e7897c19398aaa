"""The parameters: their names, limits and defaults, and how a value is settled.

A default is overridden by the TOML configuration file, and that by the command line (which is how the agent hands over
the resource's parameters). Every refusal names the thing, the limit and the remedy. Pure: reads text, touches no
file, no clock, no socket; whoever calls reads the configuration file. The guardian starts through here, so
importing it must stay cheap: tomllib is only imported where a configuration file is given.
"""

from collections.abc import Callable, Mapping, Sequence
from socket import AF_INET, AF_INET6, inet_pton  # reads text; opens nothing

Value = str | int | bool | None

# A unix socket's path is at most 107 bytes (sun_path, with its end); the longest name beside run_dir is /control.sock.
SOCKET_PATH_LIMIT_BYTES = 107
LONGEST_SOCKET_NAME = "/control.sock"
ID_LIMIT_BYTES = 64
ADDRESSES_MOST = 16
UNSPECIFIED = ("0.0.0.0", "::")
LOG_LEVELS = ("debug", "info", "notice", "warning", "error")
LOOPBACK_V6 = bytes(15) + b"\1"
INSECURE = "insecure-no-keys"
YES = ("true", "yes", "on", "1")
NO = ("false", "no", "off", "0")


class BadSetting(ValueError):
    """A parameter that cannot be used, in words for the operator."""


class Parameter:
    """One parameter. `check` turns the raw value (text from a command line, or a TOML value) into the settled one."""

    __slots__ = ("check", "default", "name", "reloadable", "text", "where")

    def __init__(
        self,
        name: str,
        default: Value,
        check: Callable[[str, object], Value],
        text: str,
        *,
        reloadable: bool = False,
        where: str = "both",
    ) -> None:
        self.name = name
        self.default = default
        self.check = check
        self.text = text
        self.reloadable = reloadable  # a running daemon takes a new value over
        self.where = where  # "both", or "command line" for what cannot stand in the configuration file

    def option(self) -> str:
        return "--" + self.name.replace("_", "-")


def whole(low: int, high: int, unit: str = "") -> Callable[[str, object], Value]:
    def check(name: str, raw: object) -> Value:
        limits = f"a whole number from {low} to {high}{unit and ' ' + unit}"
        value = raw
        if isinstance(raw, str) and raw.strip().isascii() and raw.strip().isdigit():
            value = int(raw.strip().lstrip("0")[:12] or 0)
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadSetting(f"{name} is {raw!r}: must be {limits}")
        if not low <= value <= high:
            raise BadSetting(f"{name} is {value}: must be {limits}")
        return value

    return check


def choice(*words: str) -> Callable[[str, object], Value]:
    def check(name: str, raw: object) -> Value:
        if not isinstance(raw, str) or raw.strip().lower() not in words:
            raise BadSetting(f"{name} is {raw!r}: must be one of {', '.join(words)}")
        return raw.strip().lower()

    return check


def flag(name: str, raw: object) -> Value:
    if isinstance(raw, bool):
        return raw
    word = raw.strip().lower() if isinstance(raw, str) else ""
    if word not in YES + NO:
        raise BadSetting(f"{name} is {raw!r}: must be true or false")
    return word in YES


def word(name: str, raw: object) -> Value:
    """Text without spaces or control characters."""
    if not isinstance(raw, str) or not raw or not raw.isprintable() or " " in raw:
        raise BadSetting(f"{name} is {raw!r}: must be text without spaces")
    return raw


def path(name: str, raw: object) -> Value:
    if not isinstance(raw, str) or not raw.startswith("/") or not raw.isprintable():
        raise BadSetting(f"{name} is {raw!r}: must be an absolute path, one that begins with /")
    return raw


def identifier(name: str, raw: object) -> Value:
    if not isinstance(raw, str) or not raw or "/" in raw or raw.startswith((".", "-")) or not raw.isprintable():
        raise BadSetting(f"{name} is {raw!r}: must be a resource's name, without / and not beginning with . or -")
    if len(raw.encode()) > ID_LIMIT_BYTES:
        raise BadSetting(f"{name} is {raw!r}: must be at most {ID_LIMIT_BYTES} bytes; use a shorter resource name")
    return raw


def numeric_address(name: str, raw: object) -> Value:
    found = parse_address(raw.strip()) if isinstance(raw, str) else b""
    if not any(found):  # nor the one that means all of them: peers and clients are told this one
        raise BadSetting(f"{name} is {raw!r}: must be a numeric IPv4 or IPv6 address of this node")
    return str(raw).strip()


def parse_address(text: str) -> bytes:
    """The bytes of a numeric address, none where it is no such thing."""
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):
        return b""


def numeric_addresses(name: str, raw: object) -> Value:
    """Addresses separated by commas, which need not be there yet; settled without spaces."""
    found = [part.strip() for part in raw.split(",")] if isinstance(raw, str) else []
    if not found or len(found) > ADDRESSES_MOST or not all(map(is_numeric_address, found)):
        raise BadSetting(
            f"{name} is {raw!r}: must be 1 to {ADDRESSES_MOST} numeric IPv4 or IPv6 addresses, separated by commas"
        )
    if any(address in UNSPECIFIED for address in found):
        raise BadSetting(f"{name} is {raw!r}: must be addresses that clients connect to; name each one")
    return ",".join(dict.fromkeys(found))


def is_numeric_address(text: str) -> bool:
    return bool(parse_address(text))


def is_loopback(text: str) -> bool:
    found = parse_address(text)
    return found == LOOPBACK_V6 or (len(found) == 4 and found[0] == 127)


PARAMETERS = (
    Parameter("id", None, identifier, "the resource's name", where="command line"),
    Parameter("config", None, path, "configuration file (TOML)", where="command line"),
    Parameter("node", None, word, "this node's name in the cluster; from Corosync if absent", where="command line"),
    Parameter("run_dir", None, path, "locks and local sockets; /run/food/ID if absent", where="command line"),
    Parameter("daemon", None, path, "the daemon's program; the installed one if absent"),
    Parameter("address", None, numeric_address, "this node's own address; from Corosync's node list if absent"),
    Parameter(
        "client_addresses", None, numeric_addresses, "further addresses for clients, say a virtual IP", reloadable=True
    ),
    # Three ports in a row are used: log, peers, clients.
    Parameter("port", 9999, whole(1, 65533), "first of three TCP ports: log, peers, clients"),
    Parameter("data_dir", None, path, "where the store is; /var/lib/food/ID if absent"),
    Parameter(
        "key_file",
        None,
        path,
        "the cluster's secret, the same on every node; /etc/corosync/authkey if absent",
        reloadable=True,
    ),
    Parameter(
        "plaintext",
        "no",
        choice("no", INSECURE),
        f"{INSECURE}: no key; whoever reaches the ports can read and write everything",
        reloadable=True,
    ),
    Parameter("user", "food", word, "the user that the daemon runs as"),
    Parameter(
        "watchdog_ms",
        1500,
        whole(300, 600_000, "ms"),
        "a daemon whose loop stands still for so long is killed",
        reloadable=True,
    ),
    Parameter(
        "isolation_ms",
        1500,
        whole(300, 600_000, "ms"),
        "a primary that hears no majority for so long gives its role up",
        reloadable=True,
    ),
    Parameter(
        "external",
        False,
        flag,
        "started outside Pacemaker: nothing is told to it before adoption",
        where="command line",
    ),
    Parameter("degraded", False, flag, "report degraded states to Pacemaker (190, 191)", reloadable=True),
    Parameter("log_level", "info", choice(*LOG_LEVELS), "least important message that is logged", reloadable=True),
)
BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}
RELOADABLE = tuple(parameter.name for parameter in PARAMETERS if parameter.reloadable)


def read_arguments(argv: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """`--name value`, `--name=value` and bare `--switch`: (parameters by name, switches). The last of equals rules."""
    values: dict[str, str] = {}
    switches: set[str] = set()
    words = iter(argv)
    for option in words:
        name, separator, value = option.partition("=")
        key = name[2:].replace("-", "_")
        if not name.startswith("--") or (key not in BY_NAME and separator):
            raise BadSetting(f"{option!r} is not an option; --help lists them")
        if key not in BY_NAME:
            switches.add(key)
            continue
        if not separator:
            following = next(words, None)
            if following is None or following.startswith("--"):
                raise BadSetting(f"{option} needs a value")
            value = following
        values[key] = value
    return values, switches


def read_config(text: str) -> dict[str, object]:
    """The configuration file's text as parameters; names are checked here, values in `settle`."""
    import tomllib  # 10 ms: only paid for where a configuration file is used

    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not only TOML's own: a number may be too long, a list too deep
        raise BadSetting(f"the configuration file is not TOML: {error}") from None
    allowed = [parameter.name for parameter in PARAMETERS if parameter.where == "both"]
    for name in found:
        if name not in allowed:
            raise BadSetting(f"the configuration file sets {name!r}: may set only {', '.join(allowed)}")
    return found


def settle(arguments: Mapping[str, object], config: Mapping[str, object]) -> dict[str, Value]:
    """Every parameter's value: default < configuration file < command line."""
    settled: dict[str, Value] = {}
    for parameter in PARAMETERS:
        value = parameter.default
        for source in (config, arguments):
            if source.get(parameter.name) not in (None, ""):
                value = parameter.check(parameter.name, source[parameter.name])
        settled[parameter.name] = value
    if settled["id"] is None:
        raise BadSetting("id is missing: give the resource's name with --id")
    if settled["plaintext"] == INSECURE and settled["key_file"]:
        raise BadSetting(f"key_file and plaintext={INSECURE} exclude each other: unset one of them")
    settled["run_dir"] = settled["run_dir"] or f"/run/food/{settled['id']}"
    settled["data_dir"] = settled["data_dir"] or f"/var/lib/food/{settled['id']}"
    if len((str(settled["run_dir"]) + LONGEST_SOCKET_NAME).encode()) > SOCKET_PATH_LIMIT_BYTES:
        raise BadSetting(
            f"run_dir is {settled['run_dir']!r}: too long for a socket's path, which is at most"
            f" {SOCKET_PATH_LIMIT_BYTES} bytes; use a shorter directory or resource name"
        )
    return settled


def usage() -> str:
    lines = ["food --id ID [options]", ""]
    for parameter in PARAMETERS:
        default = "" if parameter.default is None else f" (default {str(parameter.default).lower()})"
        lines.append(f"  {parameter.option() + ' …':22}{parameter.text}{default}")
    lines += [
        "",
        "  --foreground          stay attached to the terminal and log to standard error",
        "  --check               check the parameters, start nothing",
        "  --clear               remove this node's promotion score and attributes, start nothing",
        "  --version, --help",
    ]
    return "\n".join(lines)
