"""A site's round is tested in a federation too."""

from federation import federation

__all__ = ["federation"]
