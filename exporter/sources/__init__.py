"""Where watched calls come from: one module a source."""
