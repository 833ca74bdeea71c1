"""ESP-PPQ on an ONNX file, calibrated with images that dffg has made.

dffg synthesize MODEL --out images.npz
python esp_ppq_onnx.py images.npz float.onnx int8.espdl
"""

import sys

from esp_ppq.api import espdl_quantize_onnx

from dffg import SyntheticSet, handover

images, source, target = sys.argv[1:]
made = SyntheticSet.load(images)
loader = handover.data_loader(made, batch_size=1)
espdl_quantize_onnx(
    source, target, loader, calib_steps=len(loader), input_shape=[1, *made.spec.shape], target="esp32p4"
)
