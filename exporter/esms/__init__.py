"""The provider: requests, answers and result codes."""
