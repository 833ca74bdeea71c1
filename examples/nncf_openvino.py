"""NNCF on an OpenVINO model, calibrated with images that dffg has made. The source is .xml, or .onnx.

dffg synthesize MODEL --out images.npz
python nncf_openvino.py images.npz float.onnx int8.xml
"""

import sys

import nncf
import openvino
from nncf.quantization.advanced_parameters import QuantizationParameters

from dffg import SyntheticSet, handover

images, source, target = sys.argv[1:]
made, model = SyntheticSet.load(images), openvino.Core().read_model(source)
# Else every channel that a depthwise layer reads gets a range of its own, which synthetic images fill less well.
per_tensor = nncf.AdvancedQuantizationParameters(
    activations_quantization_params=QuantizationParameters(per_channel=False)
)
dataset = handover.nncf_dataset(made)
openvino.save_model(nncf.quantize(model, dataset, subset_size=len(made), advanced_parameters=per_tensor), target)
