"""How alpha is steered and read: what differs from Algorithm 1."""
