"""Which code runs an operation, and how it is registered."""
