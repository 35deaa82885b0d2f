"""The client of a node: requests, streams and results, for threads and for asyncio."""
