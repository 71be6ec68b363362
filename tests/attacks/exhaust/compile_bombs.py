# story: Source that is small and takes the compiler for ever, or its stack: brackets in brackets, a hundred thousand
#   signs, powers of powers, nested comprehensions and f-strings.
# says: (MemoryError|RecursionError|SyntaxError|ValueError|OverflowError)
# %%
import sys
errors = []
sources = ["-" * 100_000 + "1", "(" * 5_000 + ")" * 5_000, "x = " + "[" * 150 + "]" * 150, "f'" + "{" * 300 + "}" * 300 + "'", "a = " + "b." * 100_000 + "c",
           "if 1:\n" + "".join(" " * i + "if 1:\n" for i in range(1, 120)) + " " * 120 + "pass", "x = 9" + "9" * 5_000, "\\N{" * 10_000]
for source in sources:
    try:
        compile(source, "bomb", "exec")
    except (SyntaxError, MemoryError, RecursionError, ValueError, OverflowError) as error:
        errors.append(type(error).__name__)
print(*errors)
# %%
((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((1))))))))
# %% causal_mask
def causal_mask(n):
    exec("x = " + "+".join(["(" * 90 + "n" + ")" * 90] * 200_000))
