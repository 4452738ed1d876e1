"""Canary calls: placed on a schedule, and followed to their end."""
