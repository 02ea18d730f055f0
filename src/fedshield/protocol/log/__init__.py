"""What a party writes down of a run, and how anyone checks it."""
