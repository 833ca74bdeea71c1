"""`dffg synthesize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dffg.cli.network import captured_from, load
from dffg.cli.options import config_options, device_option, memory_option, model_options, output_options, worker_options
from dffg.cli.recipe_file import recipe_option
from dffg.cli.terminal import console_for, progress_on, says_what_is_kept, workers_for
from dffg.config import ArrayConfig, SynthesisConfig
from dffg.errors import InputError

if TYPE_CHECKING:
    from dffg.images import SyntheticSet

_FILES = (".npz", ".safetensors", ".npy")
# Of these nobody means a folder.
_OTHER_FILES = (".pt", ".pth", ".png", ".jpg", ".jpeg", ".zip", ".h5", *_FILES)


@click.command()
@model_options
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write, .npz, .safetensors or .npy, or a folder of PNG files.",
)
@memory_option
@device_option
@worker_options
@click.option("--force", is_flag=True, help="Overwrite an earlier result.")
@recipe_option((), "Options from a YAML file.")
@output_options
@config_options(ArrayConfig)
@config_options(SynthesisConfig)
def synthesize(out: Path, force: bool, quiet: bool, as_json: bool, **options: Any) -> int:
    """Make calibration images for MODEL and save them for any tool."""
    from dffg.handover import check_array
    from dffg.images import check_pictures, pictures_in
    from dffg.storage.output import check_directory, check_file, claimed, staged_directory, staged_file

    is_file, form = out.suffix in _FILES, options["ArrayConfig"]
    if not is_file and out.suffix.lower() in _OTHER_FILES:
        raise InputError(
            f"--out {out} ends with {out.suffix}; files end with {', '.join(_FILES)}, and any other name is a folder "
            "of pictures."
        )
    if out.suffix != ".npy" and form != ArrayConfig():
        raise InputError(f"--layout and --values describe .npy files, and --out is {out}; leave them out.")
    (check_file if is_file else check_directory)(out, force=force)
    console = console_for(quiet, as_json)
    with claimed(out), progress_on(console) as view:
        view.stage("load")
        from dffg.machine.device import device_named

        where = device_named(options["device"])
        loaded, spec, _ = load(options, quiet)
        if out.suffix == ".npy":
            check_array(spec, form)
        elif not is_file:
            check_pictures(spec)
        from dffg.pipeline.run import unfinished_images
        from dffg.synthesis.synthesize import synthesize_set

        captured = captured_from(loaded, spec, view)
        config, limit = options["SynthesisConfig"], options["memory_limit"]
        with (
            says_what_is_kept(out),
            unfinished_images(captured, out, config, device=where, force=force) as kept,
            workers_for(options["ray"], options["workers"], view) as workers,
        ):
            view.stage("synthesis")
            made = synthesize_set(
                captured.on(where),
                config,
                progress=view.update,
                checkpoint=kept,
                memory_limit=limit,
                workers=workers,
            )
            with staged_file(out) if is_file else staged_directory(out, replaced=pictures_in(out)) as target:
                _save(made, target, form)
    if as_json:
        click.echo(json.dumps({"count": len(made), "path": str(out), "loss": made.snapshots[-1].loss}))
    elif not quiet:
        losses = [snapshot.loss for snapshot in made.snapshots if snapshot.loss is not None]
        walked = f", loss {losses[0]:.3f} to {losses[-1]:.3f}" if losses else ""
        click.echo(f"{len(made)} images{walked}: {out}")
    return 0


def _save(made: SyntheticSet, target: Path, form: ArrayConfig) -> None:
    if target.suffix != ".npy":
        made.save(target)
        return
    import numpy as np

    from dffg.handover import array

    np.save(target, array(made, form))
