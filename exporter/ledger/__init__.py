"""The durable record of watched calls and totals."""
