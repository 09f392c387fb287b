"""From nothing to a base model: autoencoder, language encoder, denoiser, and their export.

scenes            pictures and captions as a function of an index
windows           batches of like lengths, as a function of the step
vae               the autoencoder and its loss
language_model    the text encoder and its loss
cache             latents of rendered scenes, in shards
denoiser          flow matching on cached latents
recipes           the settings of every run, as values
results           what a finished run leaves for the next one
run               one door for all recipes
export            the published folder layout
captioned_folder  a person's pictures with captions beside them
folder_pool       their latents, dealt in epochs
claim             the folder of a fine-tuning run
finetune          a LoRA or a changed checkpoint from them
"""
