"""Errors that mean that memory ran out, which each library words in its own way."""

import errno
import re

import torch

# of the driver, cuBLAS, cuDNN and torch's allocator on the CPU, which raise plain RuntimeErrors
_SAID = re.compile(r"out of memory|STATUS_ALLOC_FAILED|can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a GPU's memory, or this machine's, ran out."""
    match error:
        case torch.OutOfMemoryError() | MemoryError():
            return True
        case OSError():
            return error.errno == errno.ENOMEM
        case RuntimeError():
            return _SAID.search(str(error)) is not None
    return False


def what_was_asked_for(error: BaseException) -> str:
    """The beginning of the error's text: how much was asked for, without the state of the allocator."""
    return ". ".join(str(error).split("\n", 1)[0].split(". ")[:2]).rstrip(".") or type(error).__name__
