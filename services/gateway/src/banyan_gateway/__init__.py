"""OpenAI-compatible REST and SSE; drives each request to its one end."""
