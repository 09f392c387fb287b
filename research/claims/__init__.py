"""The paper's claims in miniature: `python -m research.claims` runs what is not recorded yet.

arms       what is compared, and the protocol that all arms share
text       captions as features of the shipped text encoder, kept in memory
learning   one arm, one seed: the product's objective and loop on the miniature world
trial      pictures for held-out prompts, judged
record     a JSON line a run, and what they say with their uncertainty
report     the tables of docs/training.md
plots      its pictures
"""
