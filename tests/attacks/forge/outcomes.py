# story: Raises what test runners take for something else than a failure: pytest's skip, exit and xfail, unittest's skip,
#   StopIteration, GeneratorExit, KeyboardInterrupt, errors of the grader's own names.
# says: raised an error
# %%
import unittest

def named(name, base=BaseException):
    return type(name, (base,), {"__module__": "_pytest.outcomes", "allow_module_level": True, "msg": "", "returncode": 0})

kinds = iter([named("Skipped"), named("Exit"), named("XFailed"), unittest.SkipTest, StopIteration, GeneratorExit,
              KeyboardInterrupt, SystemExit, StopAsyncIteration, named("JailError", Exception), named("WorkerLost", Exception),
              MemoryError, RecursionError, BaseExceptionGroup("", [KeyboardInterrupt()]).__class__, UnicodeDecodeError] * 20)
# %% causal_mask
def causal_mask(n):
    raise named("Skipped")
# %% attention
def attention(*args):
    kind = next(kinds)
    try:
        error = kind()
    except TypeError:
        error = kind("", [KeyboardInterrupt()]) if issubclass(kind, BaseExceptionGroup) else kind("u", b"", 0, 1, "")
    raise error
# %% split_heads
def split_heads(*args):
    raise StopIteration
# %% merge_heads
def merge_heads(*args):
    raise KeyboardInterrupt
