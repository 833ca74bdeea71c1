"""What every runtime that can be written for accepts: bit widths, signs, and where integers belong.

How its files are written and run is in `dffg.export`, in the module of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime's rules; the defaults are those of ONNX Runtime's CPU provider.

    weight_bits: narrowest weights it runs; activation_bits: narrowest activations. packs: whether its files store
    weights of 4 bits and fewer in less than 8. signed: activations are int8 with zero point 0, in place of uint8 with
    any. reads_only: a tensor is quantized for those that read it; else every integer operator's result is, too.
    integer_biases: biases are int32 in the file. float_answer: the last layer writes float from integers;
    float_convolution: so does it where it is a convolution, which else computes in float.
    joins_scales: tensors that are concatenated have one scale, that of the result. adds_pairs: products are added in
    pairs, in 16 bits where the processor has nothing better (`dffg.machine.processor`).
    """

    name: str
    weight_bits: int = 2
    activation_bits: int = 2
    packs: bool = True
    signed: bool = False
    reads_only: bool = False
    integer_biases: bool = True
    float_answer: bool = True
    float_convolution: bool = True
    joins_scales: bool = False
    adds_pairs: bool = True


ONNXRUNTIME = Target(name="onnxruntime", float_convolution=False)
# OpenVINO has no integers of 2 bits; 3 are stored in 4.
OPENVINO = Target(name="openvino", weight_bits=3)
TORCH = Target(name="torch", packs=False, adds_pairs=False)
# TensorRT multiplies signed integers of 8 bits around zero, and nothing may stand between a Q and its DQ.
TENSORRT = Target(
    name="tensorrt",
    weight_bits=8,
    activation_bits=8,
    packs=False,
    signed=True,
    reads_only=True,
    integer_biases=False,
    adds_pairs=False,
)
# XNNPACK convolves and multiplies integers to integers, of 8 bits.
EXECUTORCH = Target(
    name="executorch",
    weight_bits=8,
    activation_bits=8,
    packs=False,
    float_answer=False,
    joins_scales=True,
    adds_pairs=False,
)

TARGETS = {target.name: target for target in (ONNXRUNTIME, OPENVINO, TENSORRT, TORCH, EXECUTORCH)}
