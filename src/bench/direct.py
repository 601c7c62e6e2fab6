"""Measures prefill in this process. One job as JSON on stdin, one JSON object a line on stdout."""
import inspect
import json
import os
import sys
import time

job = json.load(sys.stdin)
# Whatever a library prints is no figure of ours.
out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def tell(**what):
    out.write(json.dumps(what) + "\n")


import mlx.core as mx
import mlx_lm
from mlx_lm.generate import generate_step

known = inspect.signature(generate_step).parameters
model, tokenizer = mlx_lm.load(job["model"])
words = tokenizer.encode(job["text"])
if not words:
    sys.exit("the prompt has no tokens")


def prompt(count, turn):
    # Turned a little every time, so that no two prompts begin alike.
    shift = turn % len(words)
    once = words[shift:] + words[:shift]
    return mx.array((once * (count // len(once) + 1))[:count])


def memory(name):
    # Both names were in mlx.core.metal before mlx 0.22.
    return getattr(mx, name, None) or getattr(getattr(mx, "metal", None), name, lambda: None)


def prefill(size, count, turn):
    steps = []
    start = 0.0
    options = {}
    if "prompt_progress_callback" in known:
        options["prompt_progress_callback"] = lambda done, _: steps.append([time.perf_counter() - start, done])
    tokens = prompt(count, turn)
    mx.eval(tokens)
    memory("clear_cache")()
    memory("reset_peak_memory")()
    mx.synchronize()
    start = time.perf_counter()
    for token, _ in generate_step(tokens, model, max_tokens=1, prefill_step_size=size, **options):
        mx.eval(token)
        break
    seconds = time.perf_counter() - start
    mx.synchronize()
    return {"tokens": count, "seconds": seconds, "peak": memory("get_peak_memory")(), "progress": steps}


tell(kind="ready", tokens=len(words), mlx_lm=getattr(mlx_lm, "__version__", None))
count = job["tokens"] or len(words)
rounds = [(round_, size) for round_ in range(job["runs"] + 1) for size in job["sizes"]]
done = {tuple(pair) for pair in job["done"]}
broken = set()
for turn, (round_, size) in enumerate(rounds):
    if size in broken or (size, round_) in done:
        continue
    # The warm-up needs every shape once, not every token.
    length = min(count, 2 * size + 1) if round_ == 0 else count
    tell(kind="start", size=size, round=round_)
    try:
        tell(kind="run", size=size, round=round_, **prefill(size, length, turn))
    except Exception as error:
        broken.add(size)
        tell(kind="failed", size=size, why=f"{type(error).__name__}: {error}")
