"""Calibration images from what a network remembers."""
