"""All seven services in one process on virtual time."""
