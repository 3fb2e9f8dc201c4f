"""Types that several packages name."""
from collections.abc import Mapping
from typing import Any

import jax

Array = jax.Array
Key = jax.Array
PyTree = Any
Params = Mapping[str, Any]  # One layer's parameters by name: {'kernel': ..., 'bias': ...}.
