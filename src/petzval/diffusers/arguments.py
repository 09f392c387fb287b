"""Arguments that scripts for diffusers pass to `from_pretrained`, and how they are answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from petzval.errors import RequestError
from petzval.inference.device import choose_dtype

_NOTHING_ASKED: Mapping[str, tuple[Any, ...]] = {
    "cache_dir": (None,),
    "custom_pipeline": (None,),
    "device_map": (None,),
    "force_download": (None, False),
    "low_cpu_mem_usage": (None, False, True),
    "max_memory": (None,),
    "offload_folder": (None,),
    "offload_state_dict": (None, False, True),
    "proxies": (None,),
    "quantization_config": (None,),
    "token": (None,),
    "trust_remote_code": (None, False, True),
    "use_safetensors": (None, True),
    "variant": (None,),
}
"""Values that ask for nothing, or for what is done anyway: only safetensors are read, tensor by
tensor, and no code of a repository is run."""

_INSTEAD: Mapping[str, str] = {
    "cache_dir": "set HF_HUB_CACHE",
    "device_map": 'use .to("cuda") or enable_model_cpu_offload()',
    "max_memory": "use enable_model_cpu_offload()",
    "proxies": "set HTTPS_PROXY",
    "quantization_config": "petzval.load reads quantised files, and packs on the way",
    "token": "set HF_TOKEN",
    "use_safetensors": "pickles are never read",
    "variant": "published folders have none; torch_dtype casts",
}


def refuse_others(arguments: Mapping[str, Any], hint: str = "") -> None:
    """Pass over what changes nothing, and refuse everything else.

    Args:
        arguments: those that the callee has no name for.
        hint: for one that nothing is known of.

    Raises:
        RequestError: naming the first that would have to change something, and what does.
    """
    for name, value in arguments.items():
        allowed = _NOTHING_ASKED.get(name, ())
        if any(value is each for each in allowed):
            continue
        raise RequestError(
            f"from_pretrained has no argument {name!r:.40}"
            + (f" other than {allowed[-1]!r}" if allowed else ""),
            _INSTEAD.get(name, hint),
        )


def checked_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """A dtype that these networks can be in; None is float32.

    Raises:
        RequestError: it cannot hold them.
    """
    if dtype is None:
        return torch.float32
    if not isinstance(dtype, torch.dtype):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RequestError(f"dtype must be one of torch's, got {dtype!r}", "use torch.bfloat16")
    if dtype == torch.float16:
        raise RequestError(
            "float16 overflows in these networks unless they are scaled for it",
            "use torch.bfloat16; petzval.load scales them where there is no bfloat16",
        )
    return choose_dtype(str(dtype).removeprefix("torch."), torch.device("cpu"))
