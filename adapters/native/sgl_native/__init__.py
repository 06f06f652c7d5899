"""The native front end."""
