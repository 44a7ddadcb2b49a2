"""Text to search masks on, tasks to fine-tune on, and the demo's model and data."""
