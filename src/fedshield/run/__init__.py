"""Ways to bring coordinator and sites together. Only engines open sockets (this one opens none)."""
