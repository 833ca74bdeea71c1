"""Data-free quantization: from a trained network to a verified int8 file, without data."""
