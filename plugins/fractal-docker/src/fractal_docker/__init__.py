"""The `docker` runtime: an app's services as containers of a Docker engine."""
