"""From ``dspy.lm15`` requests to ours and back: prompts, options, tools, results, errors."""
