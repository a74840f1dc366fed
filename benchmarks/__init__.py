"""Speed and memory beside the machine's own limits; `python -m benchmarks` runs all of them."""
