"""KEEP: one folder a port; each chooses its adapter by the scheme of a URL."""
