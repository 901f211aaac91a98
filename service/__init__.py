"""The service: from an upload to calibrated probabilities. Never imports `models` or `export`."""

VERSION = "0.1.0"
