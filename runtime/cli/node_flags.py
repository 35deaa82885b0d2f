"""What the commands that ask a node have in common: the flag that names it, and attaching to it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.node import Node


def add_port(command: argparse.ArgumentParser) -> None:
    """Add ``--admin-port``."""
    command.add_argument("--admin-port", type=int, metavar="N", help="the node's admin port")


def attached(arguments: argparse.Namespace) -> Node:
    """The node that the arguments name.

    Imported here, after the arguments were found right: it is most of what a command imports.
    """
    from runtime.node import Node

    return Node.attach(arguments.admin_port)
