"""Functions as jaxprs: how JAX lays them out, and how the convolutions in them are run on a CPU."""
