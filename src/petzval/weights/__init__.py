"""Checkpoints as they lie on disk: every layout and format, read whole or refused, and written.

header       one safetensors file's header, checked
tensors      a component's tensors, one file or shards, mapped into memory
source       what every format looks like from outside, and views of it
published    the published config files ⇄ our configurations
manifest     which tensors an architecture has
checkpoint   a whole folder: checked first, then loaded part by part
key_tables   other programs' names of tensors, complete in both directions
comfy_quant  ComfyUI's quantised layers
foreign_formats  what is not read, named with the way out
mlx_quant    layers in MLX's integers and MXFP4
gguf_source  tensors of a GGUF file
recognition  which network a file holds, behind any prefix, beside any other
views        each component under its published names (the text encoder: encoder_views)
expert_banks gates and ups that others keep apart, put together
opening      a component's folder, in any program's names and codes
component    one component from any file, recognised by its keys
assembly     a checkpoint put together from parts
convert      one format into another
lora         small changes to the denoiser in files of every family, and what adds them
lora_live    the same beside the weights, their strength free to change
writing      components and checkpoints written, all or nothing
kept_codes   a denoiser whose matrices stay in the codes of their file
mxfp4        4-bit blocks, decoded and encoded
registry     the mirrors of the weights: data, with licences and known hashes
hub_cache    the cache that programs share, as it lies on disk
hub          what a repository holds, and its bytes: the only file that knows the client
destination  where fetched files go
pull         a mirror, fetched and proven
verify       counts, bytes, hashes and faults of any checkpoint
"""
