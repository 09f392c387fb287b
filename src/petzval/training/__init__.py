"""What every stage of learning shares: a step, a loop, an optimizer, an EMA, a resumable state.

The room knows no objective. A stage hands `loop.train` something that has `batch(step)` and
`loss(batch)`; everything that is random in training is decided by `batch(step)`, so a run is a
pure function of its recipe and can be stopped and resumed at any step.
"""
