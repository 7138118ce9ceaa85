"""The built-in plugins. Like all other plugins they are found by entry points."""
