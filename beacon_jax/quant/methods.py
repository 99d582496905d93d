"""The table of methods. To add one, write a `quantize` of the shared signature in its own file and add a row."""

from collections.abc import Callable

from beacon_jax.quant import beacon, comq, gptq, rtn

# quantize(kernel (N, C), stats, alphabet (K,), *, <own options>) -> QuantizedMatrix
METHODS: dict[str, Callable] = {
    "rtn": rtn.quantize,
    "gptq": gptq.quantize,
    "comq": comq.quantize,
    "beacon": beacon.quantize,
}
