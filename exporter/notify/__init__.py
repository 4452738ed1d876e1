"""Notifications of finished calls: the dispatcher, and a module per kind of target."""
