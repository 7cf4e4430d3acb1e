"""SPARE among other systems: servers to try it with, and a deployment that follows the registry."""
