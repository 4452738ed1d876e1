"""Writes the references in `docs/` from what the code says of itself."""
