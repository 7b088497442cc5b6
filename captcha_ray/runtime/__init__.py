"""Ray: connecting to it, waiting for capacity, telemetry."""
