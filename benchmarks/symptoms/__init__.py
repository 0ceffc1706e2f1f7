"""Training runs, healthy and broken, on which the symptoms are calibrated and compared."""
