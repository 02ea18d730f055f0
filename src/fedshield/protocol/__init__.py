"""What the parties say to each other, and in which order. No engine, no torch, no sockets."""
