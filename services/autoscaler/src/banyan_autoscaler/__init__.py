"""Observes, decides scale, acts through an actuator."""
