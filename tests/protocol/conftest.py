"""Every test of the protocol can have a federation."""

from federation import federation, five, four, three_blocks
from sums import federation_of_sums

__all__ = ["federation", "federation_of_sums", "five", "four", "three_blocks"]
