"""The limit of infinite width of a network as it is written: its kernels are read from its jaxpr."""
