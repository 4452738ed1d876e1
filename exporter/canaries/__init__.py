"""Canary calls: placed on a schedule, and polled until they finish."""
