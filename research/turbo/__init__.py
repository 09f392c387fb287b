"""The four-step mini against its teacher, and what each term of its distillation is for.

    python -m research.turbo measure      student and teacher at several step counts
    python -m research.turbo sizes        five sizes, two of which nobody trained on
    python -m research.turbo ablate       short distillations with one term left out, and compare
    python -m research.turbo report       the plots of docs/turbo.md, from what was recorded

The first three want `build/data/mini`, the third `build/runs/latents`, too:
docs/guides/training-mini.md says how they are made.
"""
