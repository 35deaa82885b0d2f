"""Generators of the reference pages: the command line and the settings, from the code itself."""
