#!/bin/sh
# Hailo's Dataflow Compiler, calibrated with images that dffg has made: hailo.sh MODEL float.onnx
# Where a model script normalizes on the chip, the calibration set is what comes before: add --values pixels.
set -e
dffg synthesize "$1" --out calib.npy --layout nhwc
hailo parser onnx "$2" --net-name model --hw-arch hailo8 -y
hailo optimize model.har --hw-arch hailo8 --calib-set-path calib.npy --output-har-path quantized.har
hailo compiler quantized.har --hw-arch hailo8
