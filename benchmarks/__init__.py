"""What measures speed, with its peers. See docs/performance.md."""
