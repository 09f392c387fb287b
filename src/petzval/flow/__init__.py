"""Rectified-flow mathematics as functions of tensors: path, schedule, guidance, solver."""
