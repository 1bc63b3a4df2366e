"""The networks: candidate ops, the supernet of the search and the final network."""
