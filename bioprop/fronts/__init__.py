"""Where a rule applies: onto unmodified Flax models."""
