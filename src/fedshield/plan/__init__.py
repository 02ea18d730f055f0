"""The plan of a run: what it says, what it means, and what is refused before anything is loaded."""
