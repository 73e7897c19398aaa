"""The package's one exception: what went wrong, with its name, and what to do about it."""


class LabError(Exception):
    """The lab cannot do what was asked. The text names the thing and the remedy."""
