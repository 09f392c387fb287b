"""Arguments that scripts for diffusers pass to `from_pretrained`, and how they are answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from petzval.errors import RequestError

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
