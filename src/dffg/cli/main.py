"""The program: all commands, and what becomes of errors."""

from __future__ import annotations

import _thread
import atexit
import gc
import os
import sys
import threading

import click

from dffg.cli.batch import batch
from dffg.cli.look import evaluate, inspect, report
from dffg.cli.quantize import finetune, quantize
from dffg.cli.recipe import recipe
from dffg.cli.synthesize import synthesize
from dffg.cli.terminal import INTERRUPTED
from dffg.errors import DffgError, first_line

_SOON = 0.05
_TAKES_LESS = (
    "Fewer --learning-images or --images, a smaller --batch-size or --memory-limit, and smaller images (--input) take "
    "less. Nothing was half written."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="dffg")
def cli() -> None:
    """Data-free quantization: from a trained network to a verified file of 8 bits or fewer, without data.

    MODEL is demo:NAME, timm:NAME, torchvision:NAME, hf:USER/NAME, package.module:factory, or a .pt2 or .onnx file.
    """


for _command in (quantize, finetune, synthesize, evaluate, inspect, report, batch, recipe):
    cli.add_command(_command)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script by which SHELL completes commands and options; evaluate it when the shell starts."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "dffg", "_DFFG_COMPLETE").source())


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Python drops an interruption that comes while it clears up an object; then the main thread gets another."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(_SOON, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)


def _what(error: DffgError | OSError) -> str:
    """An error of the operating system with the file that it is of."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror.lower()}; see that it is there and yours to use."
    return str(error)


def main() -> None:
    """Entry point: run a command, turn errors into one message and an exit code."""
    sys.unraisablehook = _interrupt_again
    # At its end Python would look through all that torch and the run made once more, for a second or two.
    atexit.register(gc.freeze)
    debug = "--debug" in sys.argv
    try:
        code = cli.main(standalone_mode=False)
    except (DffgError, OSError) as error:
        if debug:
            raise
        click.echo(f"dffg: {_what(error)}", err=True)
        code = getattr(error, "exit_code", DffgError.exit_code)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("dffg: interrupted; nothing was written.", err=True)
        code = INTERRUPTED
    except Exception as error:
        from dffg.machine.device import is_out_of_memory

        if debug or not is_out_of_memory(error):
            raise
        click.echo(f"dffg: memory ran out: {first_line(error)}\n{_TAKES_LESS}", err=True)
        code = DffgError.exit_code
    sys.exit(code if isinstance(code, int) else 0)
