"""Hidden values of infinitely wide networks, and their kernels: what all lazy limits are made of.

`leaves` says what a value is made of, `moments` and `derivatives` what two samples of it have in
common. Whoever builds values, from numbers (`theory.lazy_kernels`) or from a jaxpr
(`bioprop.limit`), gets kernels under every rule.
"""
