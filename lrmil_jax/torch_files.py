"""What PyTorch saved, read by its loader that runs no code of the file; PyTorch is optional."""

import warnings
from pathlib import Path
from typing import Any

from lrmil_jax.errors import UserError


def load(path: Path, *, error: type[UserError], what: str, otherwise: str) -> Any:
    """The content of a `.pt`, `.pth` or `.bin` file, its tensors on the CPU.

    Args:
      path: of the file.
      error: the class of the mistakes below.
      what: the file should hold, for the sentence.
      otherwise: what to do without PyTorch, or without this file.

    Raises:
      UserError: of class `error`: PyTorch is not installed, or the file is broken or would have to
        run code to be read.
    """
    torch = library(path, error=error, otherwise=otherwise)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # pickle's, zip's and PyTorch's own, all for broken files
        reason = str(problem).strip().split("\n")[0][:160]
        archive = "torchscript" in str(problem).lower()
        hint = "it is a TorchScript archive" if archive else "copy or download it again"
        raise error(
            f"{path} holds no PyTorch {what} that can be read without running its code ({reason}): "
            f"{hint}, or {otherwise}."
        ) from problem


def library(path: Path, *, error: type[UserError], otherwise: str) -> Any:
    """PyTorch, for a file that nothing else reads or writes.

    Raises:
      UserError: of class `error`: it is not installed.
    """
    try:
        import torch
    except ImportError as problem:
        raise error(
            f"{path} is a PyTorch file, which only PyTorch reads and writes: pip install "
            f"'lrmil_jax[torch]', or {otherwise}."
        ) from problem
    return torch
