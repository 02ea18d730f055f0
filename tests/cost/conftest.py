"""Federations of real sites, for tests that compare a dry run with them."""

from federation import federation, three_blocks

__all__ = ["federation", "three_blocks"]
