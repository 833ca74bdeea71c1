"""Other people's generators of calibration images, run as published, each in an environment of its own."""
