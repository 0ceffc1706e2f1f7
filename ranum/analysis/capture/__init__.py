"""From somebody's training step to a graph."""
