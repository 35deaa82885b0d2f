"""Names that moved."""

from supervision.codec import PACKAGES, FrameRefused
from supervision.session import COOKIE_BYTES, MAX_FRAME_BYTES
from supervision.session import Secret as FrameCodec

__all__ = ["COOKIE_BYTES", "MAX_FRAME_BYTES", "PACKAGES", "FrameCodec", "FrameRefused"]
