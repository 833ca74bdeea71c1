"""NNCF on an OpenVINO model, calibrated with images that dffg has made. The source is .xml, or .onnx.

dffg synthesize MODEL --out images.npz
python nncf_openvino.py images.npz float.onnx int8.xml
"""

import sys

import nncf
import openvino

from dffg import SyntheticSet, handover

images, source, target = sys.argv[1:]
made, model = SyntheticSet.load(images), openvino.Core().read_model(source)
openvino.save_model(nncf.quantize(model, handover.nncf_dataset(made), subset_size=len(made)), target)
