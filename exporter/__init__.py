"""Watches voice calls placed through the eSMS voice API and exposes what became of them."""

__version__ = "0.1.0"
