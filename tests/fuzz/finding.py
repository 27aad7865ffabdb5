"""What becomes of a random problem that is neither right nor wrong."""


class Skipped(Exception):
    """The problem says nothing: it lies at a kink, or is one that the library refuses."""
