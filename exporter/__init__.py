"""A Prometheus exporter for the results of voice calls placed through the eSMS API."""

__version__ = "0.1.0"
