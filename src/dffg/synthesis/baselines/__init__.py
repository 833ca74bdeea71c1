"""Other generators of calibration images, behind the same road: what makes our images better has to show beside them.

Every module has a `run_chain(captured, config, chain)` like `synthesis/chain.py`, re-implemented from formulas, with
its paper, its constants and where we differ in the docstring. The -fgsm family and dffg are settings of that one
(`dffg.config.synthesis.GENERATOR_DEFAULTS`). The attacks are turned downhill and matched exactly (slack 0); our step
size, start and bounds take the place of theirs, which belong to a ball around a clean image:

    i-fgsm     Kurakin et al., ICLR 2017 workshop: no momentum (decay 0)
    mi-fgsm    Dong et al., CVPR 2018: momentum that never forgets (decay 1)
    ni-fgsm    Lin et al., ICLR 2020: decay 1, the gradient taken where the velocity leads (Nesterov)
    vmi-fgsm   Wang and He, CVPR 2021: decay 1, the variance of the gradient around the image added; 2 samples in place
               of 20, which would cost 21 passes a step, within strength 0.4 (1.5 times the attack's radius of 16/255)
    di-fgsm    Xie et al., CVPR 2019: decay 0, random views with probability 1/2; ours flip and roll besides
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dffg.config import SynthesisConfig
from dffg.graph.captured import Captured
from dffg.synthesis.baselines import adam_snapshots, deepinversion, dgh, dsg, genie, noise, zeroq
from dffg.synthesis.chain import Visit

RunChain = Callable[[Captured, SynthesisConfig, int], Iterator[Visit]]

BASELINES: dict[str, RunChain] = {
    "noise": noise.noise_chain(noise.normal),
    "uniform": noise.noise_chain(noise.uniform),
    "ones": noise.noise_chain(noise.ones),
    "sigma-noise": noise.noise_chain(noise.unnormalized),
    "zeroq": zeroq.run_chain,
    "dsg": dsg.run_chain,
    "deepinversion": deepinversion.run_chain,
    "dgh": dgh.run_chain,
    "genie": genie.run_chain,
    "adam-snapshots": adam_snapshots.run_chain,
}
