"""Answer questions by reasoning and acting (ReAct, Yao et al. 2022) with a tool in Python: a calculator.

    python examples/react.py                 three questions at once; the examples in the prompt are computed once for all
    sgl run examples/react.py --arg question="How much is 19 * 23?"

The model chooses the action with select, so it can only choose one that exists; the number of steps is bounded; whatever it
writes, the calculator takes arithmetic and nothing else. Each step continues the token ids of those before it.
"""

import ast
import operator
from collections.abc import Callable

import sgl_native as sgl

MOST_STEPS = 3
QUESTIONS = ("What is 86 times 12?", "What is 350 minus 128?", "What is 4096 divided by 32?")
EXAMPLES = """\
Answer each question in steps. An action is either calculate, with arithmetic, or finish, with the answer.

Question: What is 15 times 8?
Thought: I have to calculate 15 * 8.
Action: calculate
Input: 15 * 8
Observation: 120
Thought: I know the answer now.
Action: finish
Input: 120

Question: What is 90 minus 34?
Thought: I have to calculate 90 - 34.
Action: calculate
Input: 90 - 34
Observation: 56
Thought: I know the answer now.
Action: finish
Input: 56

Question: What is 7 plus 5, times 3?
Thought: I have to calculate (7 + 5) * 3.
Action: calculate
Input: (7 + 5) * 3
Observation: 36
Thought: I know the answer now.
Action: finish
Input: 36

"""
OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> str:
    """The value of an arithmetic expression, or what is wrong with it: an observation either way."""
    try:
        return f"{value_of(ast.parse(expression.strip(), mode='eval').body):g}"
    except (SyntaxError, ValueError, ArithmeticError, RecursionError) as error:
        return f"error: {type(error).__name__}"


def value_of(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](value_of(left), value_of(right))
        case ast.UnaryOp(op=ast.USub() as op, operand=operand):
            return OPERATORS[type(op)](value_of(operand))
    raise ValueError("only numbers, + - * / and brackets")


@sgl.function
def react(s, question=QUESTIONS[0]):
    s += EXAMPLES + "Question: " + question + "\n"
    for _ in range(MOST_STEPS):
        s += "Thought:" + sgl.gen("thought", max_tokens=32, temperature=0, stop="\n")
        s += "\nAction: " + sgl.select("action", ["calculate", "finish"])
        s += "\nInput:" + sgl.gen("input", max_tokens=16, temperature=0, stop="\n") + "\n"
        if s["action"] == "finish":
            break
        s += f"Observation: {calculate(s['input'])}\n"
    s["answer"] = s["input"].strip() if s["action"] == "finish" else None


def main() -> None:
    with sgl.Engine() as engine:
        states = react.run_batch([{"question": question} for question in QUESTIONS], backend=engine)
    for state in states:
        info = state.get_meta_info("input")
        print(state.text().removeprefix(EXAMPLES))
        print(f"  [{info['cached_tokens']} of the last {info['prompt_tokens']} prompt tokens were cached]\n")


if __name__ == "__main__":
    main()
