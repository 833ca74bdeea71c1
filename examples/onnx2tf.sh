#!/bin/sh
# onnx2tf from an ONNX file to an int8 .tflite, calibrated with images that dffg has made, in place of 20 pictures of
# COCO: onnx2tf.sh MODEL float.onnx INPUT_NAME
# onnx2tf computes (values - mean) / std; the images are network inputs already.
set -e
dffg synthesize "$1" --out calib.npy --layout nhwc
onnx2tf -i "$2" -o tflite -oiqt -cind "$3" calib.npy "[[[[0,0,0]]]]" "[[[[1,1,1]]]]"
