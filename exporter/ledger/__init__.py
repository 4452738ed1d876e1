"""The ledger: the database of calls, totals, notifications, canary runs and leases."""
