"""Corpora of documentation, made from the wheels of real packages."""
