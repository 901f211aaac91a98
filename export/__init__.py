"""From a trained network to a bundle that can be served: calibrate, write, verify, save."""
