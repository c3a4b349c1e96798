"""Records the layers' inputs, as moments, and the gradients of their weights while the model runs over some batches:
for initialisations that look at data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..backend import Array, get_array_module, to_numpy
from ..data import Batch
from ..nn import FusedLinear, Inputs, Linear, Module, Parameter, Part, Pass, Sequential
from ..nn.layers import LinearCache
from ..training.gradients import inputs_of, loss_and_gradients
from .initialisations.start import Data, Moments


class Latest:
    """The array that a Recorder was given last, and that Recorder."""

    x: Array | None = None
    by: Recorder


class Recorder(Linear):
    """A Linear that replaces another, with the same W and b, and sums up the moments of its inputs.

    Layers in a row that are given the same array, as q_proj, k_proj and v_proj are, share the sums of the first.
    """

    def __init__(self, layer: Linear, latest: Latest) -> None:
        bias = None if layer.bias is None else Parameter(layer.bias.data, trainable=False)
        super().__init__(Parameter(layer.weight.data, trainable=False), bias)  # its own, as W may be tied
        self.latest, self.first = latest, self
        self.moments: Moments | None = None  # on the host

    def children(self) -> dict[str, Module]:
        return {}  # `first` may be itself

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, LinearCache]:
        if not self.weight.trainable:
            if x is not self.latest.x:
                self.latest.x, self.latest.by = x, self
                self.add(x, inputs.padding)
            self.first = self.latest.by
        return super().forward(x, inputs, run)

    def add(self, x: Array, padding: Array | None) -> None:
        """Count the rows of x that are no padding."""
        moments = Moments.of(to_numpy(x if padding is None or x.ndim < 3 else x[get_array_module(x).asarray(padding)]))
        self.moments = moments if self.moments is None else self.moments.joined(moments)


def record(model: Module, layers: Mapping[str, Linear], batches: Iterable[Batch], needs: str) -> dict[str, Data]:
    """{path: Data} of `layers` of the model, {path: a Linear, or a part of a fused one}, after a run over `batches`.

    `needs` is the field of Data to fill: "inputs", the Moments of what each layer is given, without padding; or
    "gradient", that of the mean cross-entropy with respect to its W, averaged over the batches. Layers in a row that
    read one x share one (in, in) array of float64; a gradient is (out, in) for each layer. Nothing else is kept, and
    the model is left as it was. Raises ValueError where there is no batch.
    """
    assert isinstance(model, Sequential)
    batches, latest, learned = list(batches), Latest(), [p for p in model.parameters() if p.trainable]
    if not batches:
        raise ValueError("data holds no batch")
    above = {path: path.rpartition(".")[0] for path in layers}
    places = {path: up if isinstance(model[up], FusedLinear) else path for path, up in above.items()}
    before: dict[str, Any] = {place: model[place] for place in places.values()}
    recorders = {place: Recorder(layer, latest) for place, layer in before.items()}
    sums: dict[str, Array] = {}
    try:
        model.freeze()
        for place, recorder in recorders.items():
            model[place] = recorder
            if needs == "gradient":
                recorder.weight = Parameter(recorder.dense())
        for batch in batches:
            if needs == "inputs":
                model.forward(batch.ids, inputs_of(batch))
            else:
                _, grads = loss_and_gradients(model, batch)
                sums = {place: sums.get(place, 0) + grads[recorder.weight] for place, recorder in recorders.items()}
    finally:
        for place, layer in before.items():
            model[place] = layer
        for parameter in learned:
            parameter.trainable = True
    found = {}
    for path, layer in layers.items():
        place = places[path]
        if needs == "inputs":
            found[path] = Data(inputs=recorders[place].first.moments)
        else:
            G = to_numpy(sums[place]) / len(batches)
            found[path] = Data(gradient=G[layer.rows] if place != path and isinstance(layer, Part) else G)
    return found
