"""Telling others of finished calls: a signed POST for each, at least once."""
