"""Requests under way: the backend, candidates of a call, flights that are shared, prefixes that are kept, replies by program."""
