"""rerankd behind HTTP: the ASGI app, its dialects, and the server that runs it."""
