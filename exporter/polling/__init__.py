"""Who is polled when, and how fast."""
