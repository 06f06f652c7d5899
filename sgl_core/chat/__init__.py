"""What chat front ends share, whichever framework they serve: conversations as prompts, replies that are known, tools.

The LangChain and DSPy adapters call it. It knows no framework and no torch.
"""
