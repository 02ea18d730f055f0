"""The command line: parse, call, print. Nothing else prints."""

from fedshield.cli.entry import app, main

__all__ = ["app", "main"]
