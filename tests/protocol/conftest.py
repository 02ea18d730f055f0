"""Every test of the protocol can have a federation."""

from federation import federation, five, four, three_blocks, unsynced

__all__ = ["federation", "five", "four", "three_blocks", "unsynced"]
