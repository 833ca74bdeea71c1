#!/bin/sh
# NVIDIA ModelOpt on an ONNX file, calibrated with images that dffg has made, in place of its random data:
# modelopt.sh MODEL float.onnx int8.onnx
set -e
dffg synthesize "$1" --out calib.npy
python -m modelopt.onnx.quantization --quantize_mode int8 --calibration_data_path calib.npy --onnx_path "$2" --output_path "$3"
