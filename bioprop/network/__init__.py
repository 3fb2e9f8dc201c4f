"""How a network is seen: as a jaxpr in which parameters meet data. Knows JAX, and no Flax."""
