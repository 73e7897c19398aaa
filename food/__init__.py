"""food: a replicated, durable key-value state store that Pacemaker runs as a promotable clone.

This file is imported by every process of the project, small and large: it imports nothing.
"""

__version__ = "0.1.0"
