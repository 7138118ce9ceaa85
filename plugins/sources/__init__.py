"""Sources: plugins that fetch files by URL."""
