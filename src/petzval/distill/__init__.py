"""From many steps to four: distil a guided model into one that needs neither steps nor guidance.

conditions     what a denoiser is told, and a denoiser as a function
renoise        the noise levels at which a student's picture is judged; owner of the time direction
terms          every term of the losses, with its equation
rollout        the student's own path, as inference walks it
discriminator  heads on what the frozen teacher sees
objective      the updates of one iteration, in order
guidance       guidance within one network: a start for the former
recipes        the settings of every run, as values
build          from a recipe to networks, data and objective
run            build what a recipe says, distil, leave a checkpoint
known_world    a mixture of Gaussians, where every term is known in closed form

The room stands above `pretrain`: a student draws the batches that its teacher drew, is shown by the
same previews and exported in the same layout.
"""
