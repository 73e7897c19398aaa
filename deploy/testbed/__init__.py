"""A real Pacemaker cluster on one machine, for tests, benches and the demo.

Rule of the package: the machine stays untouched. Nodes are namespaces, what they change is kept in one
private directory, and all of it dies with the process that asked for it. Nothing here knows food's protocol.
"""

from testbed.cluster import Lab
from testbed.errors import LabError

__all__ = ["Lab", "LabError"]
