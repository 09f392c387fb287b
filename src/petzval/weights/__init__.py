"""Checkpoints as they lie on disk: the published folder layout, read whole or refused, and written.

header       one safetensors file's header, checked
tensors      a component's tensors, one file or shards, mapped into memory
published    the published config files ⇄ our configurations
manifest     which tensors an architecture has
checkpoint   a whole folder: checked first, then loaded part by part
lora         small changes to the denoiser in files of every family, and what adds them
writing      components and checkpoints written, all or nothing
mxfp4        4-bit blocks, decoded and encoded
registry     the mirrors of the weights: data, with licences and known hashes
hub_cache    the cache that programs share, as it lies on disk
hub          what a repository holds, and its bytes: the only file that knows the client
destination  where fetched files go
pull         a mirror, fetched and proven
verify       counts, bytes, hashes and faults of any checkpoint
"""
