"""Recorded numbers of the original program, compared with ours: one file for each kind of number.

case          a result, its limit, and how two tensors are compared
folder        a golden folder as it lies on disk, and the networks that are put to the test
flow          rotary tables, schedule, guidance, noise, presets
denoiser      timestep embedding, whole calls, every state inside a block, norms
encoder       text features, logits, MXFP4 experts
autoencoder   decoding and encoding
text          token ids and cleaned rewritten prompts
pictures      whole runs from prompt to pixels
architecture  the folder's own index and the full-size manifests
"""
