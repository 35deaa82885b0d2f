"""Requests in flight: their callers, what was delivered, and how one resumes after a crash."""
