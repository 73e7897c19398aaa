"""Corosync's nodes and their numeric addresses, from the tools' answers."""

from food import pacemaker, settings


class NodeBook:
    def __init__(self, node: str | None, address: str | None) -> None:
        self.node = node
        self._own_address = address
        self._listed: list[pacemaker.Node] = []
        self._resolved: dict[str, str] = {}
        self._text = ""

    def listed(self, output: str) -> None:
        found = pacemaker.read_node_list(output)
        text = repr([(node.name, node.address) for node in found])
        if text != self._text:
            self._text = text
            self._resolved.clear()  # a changed list may come with changed names
        self._listed = found
        if self.node is None:
            self.node = next((node.name for node in found if node.local), None)

    def unresolved(self) -> list[str]:
        addresses = [node.address for node in self._listed]
        return [name for name in addresses if not settings.is_numeric_address(name) and name not in self._resolved]

    def resolved(self, name: str, address: str) -> None:
        self._resolved[name] = address

    def nodes(self) -> dict[str, str] | None:
        """Name to address, None while something is missing."""
        if self.node is None or not self._listed or self.unresolved():
            return None
        found = {node.name: self._resolved.get(node.address, node.address) for node in self._listed}
        if self._own_address:
            found[self.node] = self._own_address
        return found
