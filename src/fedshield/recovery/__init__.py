"""A lost ledger, rebuilt from an older copy and what the other sites remember."""
