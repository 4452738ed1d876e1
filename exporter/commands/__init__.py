"""Commands that need more than a few lines; `exporter.cli` puts them together."""
