"""The parts of zoo-toy: `family`, `source`, and the shelf registry.yaml, which zoo reads without importing this."""
