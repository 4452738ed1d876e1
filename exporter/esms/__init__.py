"""The eSMS API: client, answers and result codes."""
