"""The work and its guarantees: the road from submit to outcome."""
