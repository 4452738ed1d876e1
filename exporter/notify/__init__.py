"""Notifications of finished calls: one dispatcher, and a module for each kind of target."""
