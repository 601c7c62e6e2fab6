"""Prefills in this process. Requests are JSON lines on stdin, answers are events like LM Studio's on stdout."""
import inspect
import itertools
import json
import os
import queue
import sys
import threading
import time

# Keep what libraries print out of the answers.
out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def tell(**event):
    out.write("data: " + json.dumps(event) + "\n")


requests = queue.SimpleQueue()


def listen():
    try:
        for line in sys.stdin:
            requests.put(json.loads(line))
    finally:
        # lmpatch is gone, and nobody waits for a prefill any more.
        os._exit(1)


threading.Thread(target=listen, daemon=True).start()

import mlx.core as mx
import mlx_lm
from mlx_lm.generate import generate_step

known = inspect.signature(generate_step).parameters
model, tokenizer = mlx_lm.load(sys.argv[1])
words = tokenizer.encode(os.environ["LMPATCH_TEXT"])
if not words:
    sys.exit("the prompt has no tokens")


def memory(name):
    # Both names were in mlx.core.metal before mlx 0.22.
    return getattr(mx, name, None) or getattr(getattr(mx, "metal", None), name, lambda: None)


def prefill(size, count, turn):
    def progress(done, _):
        seconds = time.perf_counter() - start
        tell(type="prompt_processing.progress", progress=done / count, seconds=seconds)
        if requests.get() == "stop":
            raise InterruptedError

    options = {"prompt_progress_callback": progress} if "prompt_progress_callback" in known else {}
    # Turned a little every time, so that no two prompts begin alike.
    tokens = mx.array(list(itertools.islice(itertools.cycle(words), turn, turn + count)))
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
    stats = {"input_tokens": count, "time_to_first_token_seconds": seconds}
    stats["peak_memory_bytes"] = memory("get_peak_memory")()
    tell(type="chat.end", result={"stats": stats})


# Sent so that loading and the first prefill each get the whole timeout.
tell(type="ready")
for turn, request in enumerate(iter(requests.get, None)):
    try:
        prefill(request["size"], request["tokens"], turn)
    except Exception as error:
        tell(error=f"{type(error).__name__}: {error}")
