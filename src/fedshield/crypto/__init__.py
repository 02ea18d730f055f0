"""Schemes that let a coordinator add what it cannot read. No torch, no I/O."""
