"""What every command stands on: errors, files, the console, processes."""
