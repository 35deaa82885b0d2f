"""Names that moved."""

from supervision._system import System
from supervision.host_context import HostContext

__all__ = ["HostContext", "System"]
