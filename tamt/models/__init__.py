"""Models, and the parts of a forward pass that are computed in a way of our own."""
