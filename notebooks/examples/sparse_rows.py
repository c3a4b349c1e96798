"""A linear layer with LoRA on rows of 20,000 features, few of which are not 0: as sparse rows, and as dense ones.

    python notebooks/examples/sparse_rows.py

For each share of entries, one forward and one backward (dA and dB) of 256 rows, both forms in turn in each round: the
median time, and the most memory that was taken meanwhile, x itself included. float32, one thread; r = 8, 128 outputs.
"""

import statistics
import time
import tracemalloc

import numpy as np

import minilora
from minilora.nn import Gradients, Linear, Sequential
from minilora.ops import CSR

N, FEATURES, OUT = 256, 20_000, 128


def rows(density, rng):
    """N rows with so many entries each, in columns drawn at random."""
    n = round(density * FEATURES)
    columns = np.concatenate([rng.permutation(FEATURES)[:n] for _ in range(N)])
    return CSR(np.arange(N + 1) * n, columns, rng.standard_normal(N * n, dtype="float32"), FEATURES)


def dense(x):
    full = np.zeros(x.shape, "float32")
    for row, (columns, values) in zip(full, x, strict=True):
        row[columns] = values
    return full


def gradients(model, x, dy):
    grads = Gradients()
    model.backward(dy, model.forward(x)[1], grads)
    return [grads[parameter] for parameter in model.trainable_parameters().values()]


def main(densities=(0.001, 0.01, 0.03, 0.1, 0.3), rounds=7):
    rng = np.random.default_rng(0)
    W = rng.standard_normal((FEATURES, OUT), dtype="float32").T / 100  # a table of features; W is it, transposed
    model = Sequential({"layer": Linear(W)})
    minilora.attach_lora(model, ["layer"], r=8, alpha=16, rng=rng)
    model["layer"].lora_B.data = rng.standard_normal((OUT, 8), dtype="float32")
    dy, found = rng.standard_normal((N, OUT), dtype="float32"), {}
    print("entries       ms: sparse     dense   ratio      MiB: sparse     dense   gradients apart")
    for density in densities:
        x = rows(density, rng)
        forms, times, peaks = {"sparse": x, "dense": dense(x)}, {"sparse": [], "dense": []}, {}
        results = {form: gradients(model, each, dy) for form, each in forms.items()}
        for _ in range(rounds):
            for form, each in forms.items():
                start = time.perf_counter()
                gradients(model, each, dy)
                times[form].append(1e3 * (time.perf_counter() - start))
        for form, each in forms.items():
            own = sum(a.nbytes for a in ((x.indptr, x.indices, x.values) if form == "sparse" else (each,)))
            tracemalloc.start()
            gradients(model, each, dy)
            peaks[form] = (tracemalloc.get_traced_memory()[1] + own) / 2**20
            tracemalloc.stop()
        s, d = (statistics.median(each) for each in times.values())
        apart = max(abs(a - b).max() / abs(b).max() for a, b in zip(*results.values(), strict=True))
        print(f"{density:<7.1%} {s:>16.1f} {d:>9.1f} {s / d:>7.2f} {peaks['sparse']:>16.1f} {peaks['dense']:>9.1f} "
              f"{apart:>17.0e}")  # fmt: skip
        found[density] = {"ratio": s / d, "peaks": peaks, "apart": apart}
    return found


if __name__ == "__main__":
    main()
