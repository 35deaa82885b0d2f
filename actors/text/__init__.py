"""Text in and out of a model: chat templates, markers, reply parsing. No process, no clock."""
