"""zoo-toy: `family`, `source`, and the registry file registry.yaml, which zoo reads without importing this package."""
