"""The guardian: the daemon's parent, and the only one that talks to Pacemaker and Corosync.

One loop over one poll object; nothing in it may wait, for the watchdog and the handling of a death go on while a tool
hangs. What to do is decided in watch.py; here are the descriptors, the processes and the files. Small, root, without
pyzmq and msgpack: it must start quickly and survive what the daemon does not.

Started outside Pacemaker (`external`), it knows no resource until the agent's start leaves a ticket, `adopting`, and
has the daemon knock; renaming that file to `adopted` is the adoption, so a start that was killed, or a stop after it,
which takes the ticket away, leaves nothing half done. A stop has the daemon knock for the release. A guardian that
finds `adopted` at its start succeeds one that was killed: it clears what that left in Pacemaker, and waits again.
"""

import contextlib
import json
import os
import pwd
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence

from food import __version__, keys, locks, pacemaker, settings, watch
from food.children import Tool, describe, environment, python_command, start_daemon
from food.journal import Journal, plain
from food.nodebook import NodeBook
from food.rundir import RunDirectory
from food.startup import (
    EXIT_ARGUMENTS,
    EXIT_GENERIC,
    EXIT_INSTALLED,
    EXIT_OK,
    PLAINTEXT_HINT,
    Refused,
    abandoned,
    check_installed,
    check_program,
    find_owner,
    keys_packet,
    own_directory,
    prepare_log,
    read_config_file,
    read_secret,
    refused_as,
    share_lock,
    take_lock,
)

PACKET_MOST_BYTES = 64 * 1024
PACKETS_A_TURN = 64
COMPLAINTS_A_TURN = 16
UNSENT_MOST = 256  # packets kept for a daemon that does not read; more, and it is as good as dead
TOOL_LIMIT_S = 3.0
TOOLS_AT_ONCE = 8  # only a stop runs more than one
ORPHANS_LIMIT_S = 2.0  # what a tool may take to end by itself whose guardian was killed
OVERSLEPT_S = 0.2


class Guardian:
    def __init__(self, raw: dict[str, str], config: dict[str, object], foreground: bool) -> None:
        self.raw: dict[str, object] = dict(raw)
        self.config = config
        self.settings = settings.settle(self.raw, config)
        self.given = dict(self.raw)
        self.identity = str(self.settings["id"])
        self.external = bool(self.settings["external"])
        self.resource = "" if self.external else self.identity  # what Pacemaker knows the daemon by
        self.files = RunDirectory(str(self.settings["run_dir"]))
        self.owner = find_owner(str(self.settings["user"]))
        check_program(self.settings["daemon"])
        node, address = self.settings["node"], self.settings["address"]
        self.book = NodeBook(str(node) if node else None, str(address) if address else None)
        self.foreground = foreground
        self.journal: Journal | None = None
        watchdog_ms = int(self.settings["watchdog_ms"] or 0)
        self.watch = watch.Watch(time.monotonic(), watchdog_ms, external=self.external)
        self.poller = select.poll()
        self.tools: list[tuple[watch.Job, Tool]] = []
        self.tools_lock = -1
        self.resolving: tuple[str, Tool] | None = None
        self.master = True  # crm_master is there
        self.daemon_pid, self.daemon_status = 0, EXIT_OK
        self.pipe: socket.socket | None = None
        self.daemon_errors = -1
        self.last_complaint = ""
        self.killed = False
        self.asked_to_end = False
        self.greeted = False
        self.sent_nodes: dict[str, str] = {}
        self.secret: tuple[bytes, str] | None = None  # until the daemon has its keys
        self.sent_keys: dict[str, str] | None = None
        self.unsent: list[bytes] = []
        self.wakeup, self.wakeup_end = -1, -1
        self.stop_asked = False
        self.left_behind = False  # the guardian before this one left what could not be cleared

    # Start

    def prepare(self) -> None:
        """Directories, log, guardian.lock. Raises Refused."""
        if self.owner.uid is not None:
            parent = os.path.dirname(self.files.path)
            with refused_as(parent):
                os.makedirs(parent, 0o755, exist_ok=True)
        own_directory(self.files.path, 0o750, self.owner)
        own_directory(str(self.settings["data_dir"]), 0o700, self.owner)
        prepare_log(self.identity, self.owner)
        self.journal = Journal(self.identity, "guardian", str(self.settings["log_level"]), foreground=self.foreground)
        self.guardian_lock = take_lock(self.files.file(locks.GUARDIAN_LOCK), "food is already running: {}")
        if not self.foreground and not self.external and abandoned():
            # Its start was killed. The stop after it may have found the lock free: nothing may come up any more.
            raise Refused(EXIT_GENERIC, "the start that asked for food has ended")
        if self.external:
            locks.sign(self.guardian_lock, os.getpid(), "external clearing")  # a start lets it be, without a daemon
            self.succeed()
        locks.sign(self.guardian_lock, os.getpid(), "external" if self.external else "")
        self.tools_lock = share_lock(self.files.file(locks.TOOLS_LOCK))  # not before: the clearing waits for it
        self.recall_attributes()

    def recall_attributes(self) -> None:
        """What a guardian that was killed may have left in Pacemaker: a stop has to remove it."""
        self.files.recall_attributes(self.prefixes())
        self.watch.attributes_believed = dict.fromkeys(self.files.attributes, watch.UNKNOWN)

    def prefixes(self) -> tuple[str, ...]:
        """What the names of food's attributes begin with: the others are not food's to set or delete."""
        return tuple(f"{name}-" for name in (self.identity, self.resource) if name)

    def find_secret(self) -> None:
        """Reads the key file; raises Refused. Status 5 or 2 keep this node from running food: that it lacks a file is
        no fault of the resource, which 6 would stop everywhere."""
        try:
            self.secret = read_secret(self.settings)
        except keys.KeyMissing as error:
            raise Refused(EXIT_INSTALLED, f"{error}, or {PLAINTEXT_HINT}") from None
        except keys.KeyUnusable as error:
            raise Refused(EXIT_ARGUMENTS, str(error)) from None

    def succeed(self) -> None:
        """Clears what a guardian that was killed left in Pacemaker, which would go on promoting this node."""
        if self.files.has("adopted"):
            self.say("warning", "the guardian before this one was killed: clearing its score and attributes")
            pid = os.fork()  # the clearing has a watch, signals and children of its own
            if pid == 0:
                raw = {"id": self.identity, "run_dir": self.files.path, "user": self.owner.name}
                os._exit(Guardian(raw, {}, self.foreground).clear())
            _, status = os.waitpid(pid, 0)
            self.left_behind = status != 0
            self.files.remove("adopted")

    def launch(self) -> None:
        """The daemon, with its lock and its end of the pipe; our copies are closed, so that its death frees them."""
        self.files.forget_last_life()
        lock = take_lock(
            self.files.file(locks.DAEMON_LOCK), "another food daemon still runs: {}; stop the resource first"
        )
        self.pipe, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pipe.setblocking(False)
        self.daemon_errors, errors_end = os.pipe()
        os.set_blocking(self.daemon_errors, False)
        argv = [*self.daemon_command(), "--guardian-fd", str(theirs.fileno()), "--lock-fd", str(lock)]
        stderr = 2 if self.foreground else errors_end
        self.daemon_pid = start_daemon(argv, self.owner, theirs.fileno(), lock, stderr)
        theirs.close()
        os.close(lock)
        os.close(errors_end)
        self.poller.register(self.pipe, select.POLLIN)
        self.poller.register(self.daemon_errors, select.POLLIN)
        if not self.external:
            self.files.write_attributes()
        self.say("info", f"started the daemon as process {self.daemon_pid}, user {self.owner.name}")

    def daemon_command(self) -> list[str]:
        program = self.settings["daemon"]
        if program is None:
            # Not the file's path: that would put the package's own directory first on the module search path.
            parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
            code = f"import sys; sys.path.insert(0, {parent!r}); from food.daemon import main; sys.exit(main())"
            return [*python_command(), "-c", code]
        return [*python_command(), str(program)] if str(program).endswith(".py") else [str(program)]

    # The loop

    def run(self) -> int:
        self.listen_to_signals()
        try:
            self.launch()
            self.detach()
            self.loop()
        except Refused:
            raise
        except Exception as error:  # the daemon ends with this process, and nobody else would say why
            text = f"the guardian failed, please report it: {type(error).__name__}: {error} ({place(error)})"
            self.say("error", text)
            self.files.write_reason(text)
            raise Refused(EXIT_GENERIC, text) from None
        # Nobody answers there any more. `adopted` last of all: it says that there may be something to clear.
        for name in ("moving", "control.sock", "client.sock", *self.cleared_files()):
            self.files.remove(name)
        self.say("info", "the guardian ends" + (f": {self.watch.reason}" if self.watch.reason else ""))
        if self.stop_asked:
            return EXIT_OK
        # A module that is there and cannot be imported is as good as missing.
        lacking = self.last_complaint.startswith(("ImportError:", "ModuleNotFoundError:"))
        return EXIT_INSTALLED if lacking or self.daemon_status == EXIT_INSTALLED else EXIT_GENERIC

    def loop(self) -> None:
        now = time.monotonic()
        try:
            self.act(now)
            while not self.watch.finished(now):
                timeout_ms = max(0, self.wake_at(now) - now) * 1000 + 1
                ready = self.poller.poll(timeout_ms)
                late_s = time.monotonic() - now - timeout_ms / 1000
                now = time.monotonic()
                if late_s > OVERSLEPT_S:
                    self.watch.overslept(late_s)
                self.hear({descriptor for descriptor, _ in ready}, now)
                self.act(now)
        finally:
            for tool in self.all_tools():  # what hangs would act later, perhaps on a next life
                tool.kill()

    def wake_at(self, now: float) -> float:
        deadlines = [tool.deadline for _, tool in self.tools]
        if self.resolving:
            deadlines.append(self.resolving[1].deadline)
        return min([self.watch.wake_at(now), *deadlines])

    def hear(self, ready: set[int], now: float) -> None:
        """Everything that came in, the daemon's packets first: beats that waited count before the watchdog looks."""
        if self.pipe is not None and self.pipe.fileno() in ready:
            self.hear_daemon(now)
        if self.daemon_errors in ready:
            self.hear_complaints()
        for tool in self.all_tools():
            if tool.output in ready or tool.errors in ready:
                tool.read()
        if self.wakeup in ready:
            self.hear_signals(now)
        self.reap(now)

    def act(self, now: float) -> None:
        """Carry out what the watch decides."""
        verdict = self.watch.condemned(now)
        if verdict and not self.killed:
            self.say("error", f"{verdict}: killing it")
            self.watch.killed(verdict)
            self.kill_daemon()
        if self.watch.awaits_role_move() and self.files.has("demoted"):
            self.say("info", "Pacemaker has demoted the dead daemon")
            self.watch.role_moved(now)
            self.files.remove("moving")
        if self.watch.released(now):
            self.released()
        self.watch.leave(now)
        if self.watch.phase == "stopping" and not self.asked_to_end:
            self.asked_to_end = True
            self.signal_daemon(signal.SIGTERM)
        for job, tool in list(self.tools):
            if self.watch.voids(job):
                self.drop_tool(job, tool)
        self.end_late_tools(now)
        self.run_tools(now)
        self.flush()

    # The daemon

    def hear_daemon(self, now: float) -> None:
        assert self.pipe is not None
        for _ in range(PACKETS_A_TURN):
            try:
                packet = self.pipe.recv(PACKET_MOST_BYTES + 1)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it died without reading all of ours; its own last words still wait
            except OSError:
                packet = b""
            if not packet:  # the daemon's end is closed: its death follows
                self.poller.unregister(self.pipe)
                self.pipe.close()
                self.pipe = None
                return
            try:
                self.take_packet(packet, now)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                self.say("error", f"a packet of the daemon's is not understood ({error!r}): {packet[:200]!r}")

    def take_packet(self, packet: bytes, now: float) -> None:
        if len(packet) > PACKET_MOST_BYTES:
            raise ValueError(f"longer than {PACKET_MOST_BYTES} bytes")
        message = json.loads(packet)
        if "beat" in message:
            self.watch.beat(now)
        if "role" in message:
            self.watch.role_is(str(message["role"]), now)
        if "exiting" in message:
            self.watch.exiting(str(message["exiting"]))
        if "settings" in message:
            self.reload(dict(message["settings"]))
        if "order" in message:
            self.take_order(message, now)

    def take_order(self, message: dict[str, object], now: float) -> None:
        order = message["order"]
        if not isinstance(order, int):
            raise ValueError("order is not a number")
        why = str(message.get("why", ""))
        if "score" in message:
            score = message["score"]
            if score is not None and not (isinstance(score, int) and abs(score) <= pacemaker.INFINITY):
                raise ValueError("score is not a number that Pacemaker knows")
            self.watch.order_score(order, score, why, bool(message.get("unless_alone")), now)
        elif "attributes" in message:
            attributes = message["attributes"]
            if not isinstance(attributes, dict):
                raise ValueError("attributes is not a map")
            texts = {plain(name): None if text is None else plain(str(text)) for name, text in attributes.items()}
            if not all(name.startswith(self.prefixes()) for name in texts):
                raise ValueError("an attribute's name begins with the resource's")
            try:
                if len(self.watch.attributes_wanted.keys() | texts.keys()) <= watch.ATTRIBUTES_MOST:
                    self.files.keep_attributes(texts)
            except OSError as error:  # what is not noted there, a stop would not remove
                self.watch.answers.append((order, f"{error.filename or 'attributes'}: {error.strerror}"))
            else:
                self.watch.order_attributes(order, texts, now)  # refuses too many
        elif "fail" in message:
            reason = str(message["fail"])
            self.files.write_reason(reason)
            self.watch.order_fail(order, reason, now)
        elif "adopt" in message:
            parameters = message["adopt"]
            if not isinstance(parameters, dict):
                raise ValueError("adopt is not a map")
            self.watch.answers.append((order, self.adopt(parameters)))
        elif "release" in message:
            self.watch.order_release(order, now)
        else:
            raise ValueError("an order for nothing")

    def adopt(self, parameters: dict[str, object]) -> str | None:
        """The daemon belongs to the resource that the agent's ticket names; or why not."""
        if not self.watch.adopted:
            if self.watch.phase == "stopping":
                return "food is being stopped"
            found = self.read_ticket("adopting")
            if found is None:
                return "the start that asked for it has ended"
            resource, node = found
            if node and node != self.book.node:
                return (
                    f"this node is {node} in Pacemaker and {self.book.node} in Corosync: their names must be the same"
                )
            try:
                self.files.write_attributes()  # before the adoption: from then on there may be something to clear
            except OSError as error:
                return f"{error.filename or 'attributes'}: {error.strerror}"
            try:
                self.files.take_ticket()
            except OSError as error:
                return f"the start that asked for it has ended ({error.strerror})"
            self.resource = resource
            self.watch.adopt()
            self.say("notice", f"adopted by resource {resource}")
        self.reload(parameters)
        self.send({"adopted": self.resource})
        return None

    def read_ticket(self, name: str) -> tuple[str, str] | None:
        try:
            return self.files.read_ticket(name)
        except ValueError as error:
            self.say("error", str(error))
            return None

    def released(self) -> None:
        """Nothing of the resource is left: on without Pacemaker, by what the command line says."""
        self.say("notice", f"released by resource {self.resource}")
        self.resource, self.left_behind = "", False
        self.files.forget_attributes()
        self.files.remove("adopted")
        self.reload({})
        self.send({"adopted": None})

    def reload(self, raw: dict[str, object]) -> None:
        """New values from the agent, through the daemon. A parameter that is unset falls back to the file's value, and
        outside Pacemaker to that of the command line."""
        given = self.given if self.external else {}
        changed = {**self.raw, **{name: raw.get(name) or given.get(name) for name in settings.RELOADABLE}}
        changed = {name: str(value) if value is not None else "" for name, value in changed.items()}
        try:
            settled = settings.settle(changed, self.config)
            packet = keys_packet(read_secret(settled), self.identity)
        except ValueError as error:
            self.say("error", f"the new parameters are not taken over: {error}")
            return
        before, self.settings, self.raw = self.settings, settled, changed
        self.watch.watchdog_ms = int(settled["watchdog_ms"] or 0)
        if self.journal:
            self.journal.set_level(str(settled["log_level"]))
        names = [name for name in settings.RELOADABLE if before[name] != settled[name]]
        changes = ", ".join(f"{name}={settled[name]}" for name in names)
        self.say("notice" if names else "debug", f"parameters reloaded: {changes or 'no change'}")
        fresh: dict[str, object] = {"keys": packet} if packet != self.sent_keys else {}
        self.sent_keys = packet
        self.send({"settings": self.settings, **fresh})

    def greet(self) -> None:
        """The first packet, as soon as the nodes are known; later ones when they change."""
        nodes = self.book.nodes()
        if nodes is None or nodes == self.sent_nodes:
            return
        if self.book.node not in nodes:
            self.watch.exiting(f"this node, {self.book.node}, is not in Corosync's node list ({', '.join(nodes)})")
            self.kill_daemon()
            return
        if self.unreachable(nodes):
            self.watch.exiting(self.unreachable(nodes))
            self.kill_daemon()
            return
        self.watch.node, self.watch.nodes = str(self.book.node), sorted(nodes)
        if self.greeted:
            self.say("notice", f"Corosync's node list changed: {nodes}")
            self.send({"nodes": nodes})
        else:
            self.greeted = True
            self.files.remove("reason")
            self.sent_keys = keys_packet(self.secret, self.identity)  # while the daemon imports: it costs a little
            self.secret = None
            hello = {"settings": self.settings, "node": self.book.node, "nodes": nodes, "keys": self.sent_keys}
            self.send({"hello": hello})
        self.sent_nodes = nodes

    def unreachable(self, nodes: dict[str, str]) -> str:
        """Why the others cannot talk to the address that this node would listen on; nothing where they can."""
        own = nodes[str(self.book.node)]
        for node, address in nodes.items():
            if settings.is_loopback(own) and not settings.is_loopback(address):
                return (
                    f"address is {own}, which {node} ({address}) cannot reach: set this node's own, or leave it unset"
                )
        return ""

    def send(self, message: dict[str, object]) -> None:
        if self.pipe is not None and len(self.unsent) < UNSENT_MOST:
            self.unsent.append(json.dumps(message, separators=(",", ":")).encode())

    def flush(self) -> None:
        for order, error in self.watch.answers:
            self.send({"done": order, "error": error})
        self.watch.answers.clear()
        for level, text in self.watch.log:
            self.say(level, text)
        self.watch.log.clear()
        while self.unsent and self.pipe is not None:
            try:
                self.pipe.send(self.unsent[0])
            except BlockingIOError:
                break
            except OSError:
                self.unsent.clear()
                break
            self.unsent.pop(0)
        if self.pipe is not None:
            self.poller.modify(self.pipe, select.POLLIN | (select.POLLOUT if self.unsent else 0))

    def hear_complaints(self) -> None:
        """The daemon's standard error: a traceback's last line says best what it died of."""
        for _ in range(COMPLAINTS_A_TURN):
            try:
                chunk = os.read(self.daemon_errors, 65536)
            except BlockingIOError:
                return
            if not chunk:
                self.poller.unregister(self.daemon_errors)
                os.close(self.daemon_errors)
                self.daemon_errors = -1
                return
            for line in chunk.decode(errors="replace").splitlines():
                if line.strip():
                    self.last_complaint = line.strip()
                    self.say("warning", f"the daemon says: {line}")

    def kill_daemon(self) -> None:
        self.killed = True
        self.signal_daemon(signal.SIGKILL)

    def signal_daemon(self, number: int) -> None:
        if self.daemon_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.daemon_pid, number)

    def daemon_died(self, status: int, now: float) -> None:
        self.daemon_pid, self.daemon_status = 0, os.waitstatus_to_exitcode(status)
        if self.pipe is not None:
            self.hear_daemon(now)  # its last words: role, reason
        if self.daemon_errors >= 0:
            self.hear_complaints()
        text = describe(status) + (f": {self.last_complaint}" if self.last_complaint else "")
        self.watch.died(text, now)
        if self.watch.awaits_role_move():
            self.files.write_moving()
        if self.watch.reason:
            self.files.write_reason(self.watch.reason)
        for job, tool in list(self.tools):
            if job.kind not in ("delete_score", "fail") and not self.stop_asked:
                self.drop_tool(job, tool)  # nothing may stand before taking the score away

    # Tools

    def all_tools(self) -> list[Tool]:
        return [tool for _, tool in self.tools] + ([self.resolving[1]] if self.resolving else [])

    def run_tools(self, now: float) -> None:
        while len(self.tools) < TOOLS_AT_ONCE:
            job = self.watch.next_job(now, bool(self.tools))
            if job is None:
                return
            if job.kind == "fail":
                self.files.remove("moving")  # it did not move: from now on a monitor may say so
            try:
                tool = self.start_tool(self.command(job), now)
            except OSError as error:  # no descriptors are left, say: tried again like a tool that failed
                self.watch.done(job, False, None, f"{self.command(job)[0]} cannot be run: {error.strerror}", now)
                continue
            self.tools.append((job, tool))
            if tool.status is not None:  # could not even be run
                self.tool_ended(job, tool, now)

    def command(self, job: watch.Job) -> pacemaker.Argv:
        node = str(self.book.node)
        if job.kind == "set_score":
            assert isinstance(job.value, int)
            return pacemaker.set_score(self.resource, node, job.value, master=self.master)
        if job.kind == "set_attribute":
            return pacemaker.set_attribute(node, job.name, str(job.value))
        return {
            "delete_score": lambda: pacemaker.delete_score(self.resource, node, master=self.master),
            "get_score": lambda: pacemaker.get_score(self.resource, node),
            "get_other": lambda: pacemaker.get_score(self.resource, job.name),
            "delete_attribute": lambda: pacemaker.delete_attribute(node, job.name),
            "get_attribute": lambda: pacemaker.get_attribute(node, job.name),
            "get_history": lambda: pacemaker.get_history(self.resource, node),
            "fail": lambda: pacemaker.fail(self.resource, node),
            "nodes": pacemaker.node_list,
        }[job.kind]()

    def start_tool(self, argv: pacemaker.Argv, now: float) -> Tool:
        tool = Tool(argv, now + TOOL_LIMIT_S, self.tools_lock)
        self.poller.register(tool.output, select.POLLIN)
        self.poller.register(tool.errors, select.POLLIN)
        return tool

    def end_late_tools(self, now: float) -> None:
        for tool in self.all_tools():
            if now >= tool.deadline:
                tool.kill()  # reaped like any other
                tool.deadline = now + TOOL_LIMIT_S

    def reap(self, now: float) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.daemon_pid:
                self.daemon_died(status, now)
                continue
            if self.resolving and self.resolving[1].pid == pid:
                self.resolving[1].status = os.waitstatus_to_exitcode(status)
                self.name_resolved(now)
            for job, tool in list(self.tools):
                if tool.pid == pid:
                    tool.status = os.waitstatus_to_exitcode(status)
                    self.tool_ended(job, tool, now)

    def forget_tool(self, tool: Tool) -> None:
        self.poller.unregister(tool.output)
        self.poller.unregister(tool.errors)
        tool.close()

    def drop_tool(self, job: watch.Job, tool: Tool) -> None:
        tool.kill()
        self.tools.remove((job, tool))
        self.forget_tool(tool)
        self.watch.dropped(job)

    def tool_ended(self, job: watch.Job, tool: Tool, now: float) -> None:
        tool.read()
        status = tool.status if tool.status is not None else EXIT_GENERIC
        self.tools.remove((job, tool))
        self.forget_tool(tool)
        output, errors = tool.texts()
        if status == pacemaker.EXIT_NOT_FOUND and job.kind in ("set_score", "delete_score") and self.master:
            self.say("notice", "crm_master is missing: using crm_attribute --promotion")
            self.master = False
        text = f"{self.command(job)[0]}: {tool_error(status, errors)}"
        worked, value = read_answer(job, status, output)
        if job.kind == "nodes" and worked:
            self.book.listed(output)
            self.resolve_next(now)
            self.greet()
            worked = self.greeted or bool(self.book.unresolved())
            text = f"no usable node list from Corosync for node {self.book.node or 'unknown'}"
        self.watch.done(job, worked, value, text, now)
        if self.watch.nodes_error and not self.greeted and not self.killed:
            self.files.write_reason(self.watch.nodes_error)  # for a start whose time is over before the daemon's

    def resolve_next(self, now: float) -> None:
        names = self.book.unresolved()
        if names and self.resolving is None:
            with contextlib.suppress(OSError):  # the next reading of the node list tries again
                self.resolving = (names[0], self.start_tool(pacemaker.resolve(names[0]), now))
        if self.resolving and self.resolving[1].status is not None:  # could not even be run
            self.name_resolved(now)

    def name_resolved(self, now: float) -> None:
        assert self.resolving is not None
        name, tool = self.resolving
        self.resolving = None
        tool.read()
        self.forget_tool(tool)
        address = pacemaker.read_resolved(tool.texts()[0]) if tool.status == 0 else None
        if address is None:
            self.say("warning", f"Corosync's node address {name!r} cannot be resolved; trying again")
            return
        self.book.resolved(name, address)
        self.resolve_next(now)
        self.greet()

    # Log, signals

    def say(self, level: str, text: str) -> None:
        if self.journal:
            self.journal.log(level, text)

    def detach(self) -> None:
        """From here on errors go to the log: whoever started us reads standard error to its end."""
        if self.foreground:
            return
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)

    def listen_to_signals(self) -> None:
        self.wakeup, self.wakeup_end = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(self.wakeup_end, False)
        signal.set_wakeup_fd(self.wakeup_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.poller.register(self.wakeup, select.POLLIN)

    def hear_signals(self, now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            numbers = os.read(self.wakeup, 4096)
            if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                if self.external and self.watch.adopted and self.daemon_pid:
                    self.files.write_reason("stopped from outside Pacemaker, while a resource had it")
                self.stop_asked = True
                self.watch.terminate(now)

    # Without a daemon

    def clear(self) -> int:
        """Remove score and attributes that a guardian which was killed left behind."""
        self.listen_to_signals()
        alone = locks.outlast(self.files.file(locks.TOOLS_LOCK), ORPHANS_LIMIT_S)
        resource, node = self.read_ticket("adopted") or (self.identity, "")
        self.resource, self.book.node = resource, self.book.node or node or os.uname().nodename
        self.recall_attributes()
        self.watch.daemon_lives = False
        self.watch.adopted = True
        self.stop_asked = True
        self.watch.terminate(time.monotonic())
        self.asked_to_end = True
        self.loop()
        cleared = self.cleared_files() if alone else ()  # what still runs may set again what was deleted
        for name in ("moving", *cleared):  # the sockets may be another guardian's by now
            self.files.remove(name)
        if not cleared:
            raise Refused(EXIT_GENERIC, "Pacemaker's tools did not delete the score and the attributes in time")
        return EXIT_OK

    def cleared_files(self) -> tuple[str, ...]:
        """Those that say that something is to be cleared, if nothing is: the next stop or start goes by them."""
        cleared = self.watch.cleared(time.monotonic()) and not self.left_behind
        return ("attributes", "adopted") if cleared else ()


def place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "unknown place"


def read_answer(job: watch.Job, status: int, output: str) -> tuple[bool, object]:
    if job.kind in ("get_score", "get_other"):
        return pacemaker.read_score(status, output)
    if job.kind == "get_attribute":
        return pacemaker.read_attribute(status, output)
    if job.kind == "get_history":
        return pacemaker.read_history(status)
    # Deleting what is not there has done its work.
    gone = job.kind.startswith("delete") and status == pacemaker.EXIT_NO_SUCH
    return status == pacemaker.EXIT_OK or gone, None


def tool_error(status: int, errors: str) -> str:
    if status == -signal.SIGKILL:
        return f"no answer within {TOOL_LIMIT_S:.0f} s"
    return errors.strip().split("\n")[-1] or f"exit status {status}"


SWITCHES = {"foreground", "check", "clear", "version", "help"}


def main(argv: Sequence[str] | None = None) -> int:
    if not __debug__:
        print("food does not run under python -O: its assertions guard the data", file=sys.stderr)
        return EXIT_GENERIC
    try:
        raw, switches = settings.read_arguments(sys.argv[1:] if argv is None else argv)
        for switch in switches - SWITCHES:
            raise settings.BadSetting(f"--{switch} is not an option; --help lists them")
        if switches & {"version", "help"}:
            print(f"food {__version__}" if "version" in switches else settings.usage())
            return EXIT_OK
        return serve(raw, switches)
    except settings.BadSetting as error:
        print(error, file=sys.stderr)
        return EXIT_ARGUMENTS
    except Refused as refused:
        print(refused, file=sys.stderr)
        return refused.status


def serve(raw: dict[str, str], switches: set[str]) -> int:
    config = read_config_file(raw.get("config"))
    os.umask(0o022)  # modes are given where they matter; Pacemaker's own mask is narrower
    os.environ.update(PATH=environment(os.environ)["PATH"])  # posix_spawnp searches here
    if "clear" in switches:
        # A stop must come through whatever the parameters are: only what clearing needs is looked at.
        raw = {name: raw[name] for name in ("id", "node", "run_dir") if name in raw}
        return Guardian({**raw, "user": pwd.getpwuid(os.geteuid()).pw_name}, {}, True).clear()
    check_installed()
    if "check" in switches and settings.settle(raw, config)["external"]:
        return EXIT_OK  # only the resource's part is known here: user and keys are the unit's
    guardian = Guardian(raw, config, "foreground" in switches)
    guardian.find_secret()
    if "check" in switches:
        return EXIT_OK
    guardian.prepare()
    return guardian.run()


if __name__ == "__main__":
    sys.exit(main())
