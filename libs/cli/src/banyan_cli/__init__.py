"""The `banyan` command: up, down, status, chat, generate, top, explain."""
