"""Studies: many searches and fine-tunings from one YAML file."""
