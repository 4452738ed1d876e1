"""Polling of the calls of an account: scheduling, rate limit, circuit breaker."""
