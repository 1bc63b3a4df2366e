"""Several cells trained alike and briefly, and compared."""
