"""The APIs as bytes: bodies in, one form of what is asked for; events in, frames out. Pure.

``wanted``, ``bodies`` and ``failure`` are what the APIs share; each API has a module that reads its
bodies and one class for each kind of answer, which makes the bytes of a stream, or of a whole body,
from the events of a reply alone: the same events make the same bytes.
"""
