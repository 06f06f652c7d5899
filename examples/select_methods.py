"""Choose among texts of different length, in three ways: no single number is fair to long and short choices alike.

    python examples/select_methods.py
    sgl run examples/select_methods.py --arg prompt="The capital of Australia is" --arg 'choices=["Canberra", "Sydney"]'

Each fork scores all choices on top of the prompt that they share, in one forward pass. The table shows the log-probability of
each choice, the mean over its tokens, and how much the prompt raised that mean.
"""

import sgl_native as sgl

PROMPT = "The largest city of the United States is"
CHOICES = ("New York", "New York City", "Los Angeles", "Chicago")
METHODS = ("token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized")


@sgl.function
def select_methods(s, prompt=PROMPT, choices=CHOICES):
    s += prompt + " "
    forks = s.fork(len(METHODS))
    forks += [sgl.select("choice", choices, choices_method=method) for method in METHODS]
    forks.join()


def main() -> None:
    with sgl.Engine() as engine:
        state = select_methods.run(backend=engine)
        print(PROMPT, "...\n")
        by_mean, _, by_gain = state.get_meta_info("choice")
        print(f"{'choice':<16}{'sum':>8}{'mean':>8}{'gain':>8}")
        for row in zip(CHOICES, by_mean["sum_logprobs"], by_mean["mean_logprobs"], by_gain["scores"], strict=True):
            print("{:<16}{:>8.2f}{:>8.2f}{:>8.2f}".format(*row))
        print()
        for method, choice in zip(METHODS, state["choice"], strict=True):
            print(f"{method:<36} {choice}")


if __name__ == "__main__":
    main()
