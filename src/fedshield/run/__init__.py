"""Ways to bring coordinator and sites together. Only this room opens sockets (this one opens none)."""
