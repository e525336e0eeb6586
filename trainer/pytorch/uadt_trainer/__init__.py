"""The GPU trainer process of uadt-train.

It takes tokens, masks, log-probabilities, per-token advantages and loss
options, and gives back scores, reports and weights. It is blind to the
algorithm: rewards, groups' meaning, tau and schedules live in the Go
coordinator. It reads and writes safetensors only, never pickle.

Axes: Q groups, G traces of a group, T response tokens of a trace, N tokens of
a packed row, R response tokens of a packed row, V vocabulary.
"""
