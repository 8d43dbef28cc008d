"""One script for each claim; `python -m benchmarks` runs them and prints the table."""
