"""Programs for those who work on the exporter; not part of the package."""
