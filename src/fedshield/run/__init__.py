"""Ways to bring coordinator and sites together, and the rounds. Only this room opens sockets."""
