"""Networks in ONNX files as torch modules: `load_onnx(path)`; see `module.py` for how."""
