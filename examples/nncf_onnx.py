"""NNCF on an ONNX file, calibrated with images that dffg has made.

dffg synthesize MODEL --out images.npz
python nncf_onnx.py images.npz float.onnx int8.onnx
"""

import sys

import nncf
import onnx
from nncf.quantization.advanced_parameters import QuantizationParameters

from dffg import SyntheticSet, handover

images, source, target = sys.argv[1:]
made, model = SyntheticSet.load(images), onnx.load(source)
dataset = handover.nncf_dataset(made, model.graph.input[0].name)
# Else every channel that a depthwise layer reads gets a range of its own, which synthetic images fill less well.
per_tensor = nncf.AdvancedQuantizationParameters(
    activations_quantization_params=QuantizationParameters(per_channel=False)
)
onnx.save(nncf.quantize(model, dataset, subset_size=len(made), advanced_parameters=per_tensor), target)
