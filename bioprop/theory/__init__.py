"""What learning rules do to networks of infinite width. Nothing here knows Flax."""
