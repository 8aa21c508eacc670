"""The chat server: an OpenAI-compatible HTTP API and a static page that uses it.

`protocol` defines the JSON of requests and responses, `service` runs the engine in its thread, and
`app` connects both to HTTP.
"""
