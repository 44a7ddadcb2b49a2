"""Commands of one file each, on searched and fine-tuned models."""
