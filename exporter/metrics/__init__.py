"""The Prometheus metrics, and the `/metrics` response."""
