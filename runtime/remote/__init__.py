"""A node elsewhere, by the HTTP of its gateway, with the methods that commands use of ``Node``."""
