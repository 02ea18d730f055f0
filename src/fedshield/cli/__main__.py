"""`python -m fedshield.cli`."""

from fedshield.cli import main

main()
