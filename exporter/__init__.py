"""A Prometheus exporter for the results of voice calls and messages sent through eSMS."""

__version__ = "0.1.0"
