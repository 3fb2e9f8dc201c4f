"""The limit of infinite width of a network as it is written, read from its jaxpr."""
