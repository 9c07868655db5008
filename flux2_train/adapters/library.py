"""Imports peft; where that fails, the error says what to do."""

from __future__ import annotations

try:
    import peft as peft
except ModuleNotFoundError as error:
    if error.name != "peft":
        raise
    raise ImportError("peft is not installed: run pip install -r requirements.txt in this pack's folder.") from error
except Exception as error:  # transformers raises errors of many kinds for what it cannot import
    raise ImportError(
        f"peft cannot be imported ({error}). A library that it or transformers asks for is broken or does not fit this "
        "torch, mostly an old torchao: run pip install --upgrade torchao, or pip uninstall torchao (nothing here "
        "needs it). See what is wrong with: python -c 'import peft'."
    ) from error
