"""Requests in flight: who asked, what was delivered, and how a request resumes after a crash."""
