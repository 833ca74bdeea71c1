"""What this machine is, for the report."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Versions and machine. `vnni` tells whether the CPU multiplies int8 in one instruction; None where unknown.

    device: what made the images and learned from them.
    """

    python: str
    torch: str
    onnxruntime: str
    onnx: str
    openvino: str
    executorch: str
    numpy: str
    system: str
    cpu: str
    threads: int
    vnni: bool | None
    device: str = "cpu"


def describe_environment(threads: int, device: str = "cpu") -> Environment:
    """Look at this machine. `threads`: those torch uses; `device`: see `Environment`."""
    cpu, flags = _cpu()
    return Environment(
        python=platform.python_version(),
        torch=package_version("torch"),
        onnxruntime=package_version("onnxruntime"),
        onnx=package_version("onnx"),
        openvino=package_version("openvino"),
        executorch=package_version("executorch"),
        numpy=package_version("numpy"),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu,
        threads=threads,
        vnni=None if flags is None else any("vnni" in flag for flag in flags),
        device=device,
    )


def package_version(name: str) -> str:
    """Version of an installed package, or `unknown`."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def peak_memory_bytes() -> int | None:
    """Largest resident size of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu() -> tuple[str, list[str] | None]:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor() or "unknown", None
    fields = dict(line.split(":", 1) for line in information.read_text().splitlines() if ":" in line)
    stripped = {key.strip(): value.strip() for key, value in fields.items()}
    return stripped.get("model name", platform.processor()), stripped.get("flags", "").split()
