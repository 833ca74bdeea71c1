"""Write a quantized network as a torch.export archive, in operators that every torch has, and run it.

Integers are rounded and clamped in plain arithmetic: torch's `quantized_decomposed` operators are only there after an
import of its deprecated quantization package, so that files with them cannot be loaded with `torch.export.load` alone.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from dffg.archive import check_archive
from dffg.errors import ExportError, InputError, first_line
from dffg.export.onnx import METADATA_KEY
from dffg.export.runtime import Kernels, Run, Runtime, Watch
from dffg.graph import WEIGHTED, copy_module
from dffg.images import Array, ImageSpec
from dffg.quant.operators import DEQUANTIZE, GLOBAL_AVERAGE_POOL, QUANTIZE
from dffg.quant.simulate import Quantized
