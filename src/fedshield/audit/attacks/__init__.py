"""One attack, one file: each works on what a party sees, and on nothing else."""
