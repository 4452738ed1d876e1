"""Exporters that share a ledger, seen from one of them."""
