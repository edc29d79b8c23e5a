"""The `banyan` command: up, down, status, chat, top, explain."""
