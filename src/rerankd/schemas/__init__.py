"""Forms of requests that the server's APIs share with vLLM's `LLM` and with files."""
