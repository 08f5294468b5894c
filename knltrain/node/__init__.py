"""This node and a rank's place on it."""
