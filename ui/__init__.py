"""Who asks: the HTTP API, the web application and its browser components."""
