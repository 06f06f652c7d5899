"""A plugin whose import raises."""

raise RuntimeError("the shop is on fire")
