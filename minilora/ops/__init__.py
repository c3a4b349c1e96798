"""The mathematics: one file per derivation, pure functions over arrays, no state.

    forward     y, cache = op_forward(x, W, ..., constants)     inputs (x, or q, k, v, or ids), then parameters
    backward    dx, ...  = op_backward(dy, cache, W, ...)       the gradients of the inputs, for the layer below
    gradients   dW       = op_gradients(dy, cache)              the gradient of a parameter, a function for each

Each takes only the arguments that it needs, in this order: linear_backward(dy, W), lora_A_gradients(dh, x). A forward
that needs no cache returns y alone (rope). A gradient dz has the shape and dtype of z.

A frozen layer calls `backward` and never `gradients`: that is what LoRA saves. No op writes to its arguments or to a
cache. Every op is analytic, so that it can be checked by complex steps, and uses only functions that NumPy and CuPy
share.

Attention is implemented twice: blockwise_attention is for long sequences, in memory linear in T.
"""

from .adalora import (
    AdaLoRACache,
    adalora_backward,
    adalora_forward,
    adalora_gradients,
    orthogonality_forward,
    orthogonality_gradients,
    squared_orthogonality_forward,
    squared_orthogonality_gradients,
)
from .alora import from_last_occurrence, pick, put_back
from .attention import (
    attention_backward,
    attention_bias_gradients,
    attention_forward,
    attention_mask,
    padding_mask,
)
from .blockwise_attention import BlockwiseAttentionCache, blockwise_attention_backward, blockwise_attention_forward
from .convolution import (
    Window,
    channels_first,
    channels_last,
    convolution_backward,
    convolution_forward,
    convolution_gradients,
    kernels,
    windows,
    windows_backward,
)
from .cross_entropy import IGNORE, cross_entropy_backward, cross_entropy_forward
from .csr import CSR, csr_backward
from .dora import (
    DoRACache,
    dora_A_gradients,
    dora_B_gradients,
    dora_backward,
    dora_forward,
    dora_m_gradients,
    dora_norms,
)
from .dropout import dropout_backward, dropout_forward
from .embedding import embedding_forward, embedding_gradients
from .embedding_bag import bags, embedding_bag_backward, embedding_bag_forward, embedding_bag_gradients
from .geglu import geglu_backward, geglu_forward
from .gelu import gelu_backward, gelu_forward, gelu_tanh_forward
from .ia3 import ia3_backward, ia3_forward, ia3_gradients
from .kl_divergence import kl_backward, kl_forward, reverse_kl_backward, reverse_kl_forward
from .layer_norm import gain_gradients, layer_norm_backward, layer_norm_forward
from .linear import bias_gradients, linear_backward, linear_forward, linear_gradients
from .loha import loha_A_gradients, loha_B_gradients, loha_backward, loha_factors, loha_forward
from .lokr import lokr_backward, lokr_forward, lokr_low_rank_gradients, lokr_sizes, lokr_w1_gradients, lokr_w2_gradients
from .lora import LoRACache, lora_A_gradients, lora_B_gradients, lora_backward, lora_forward, lora_h_backward
from .lora_bias import lora_bias_forward, lora_bias_gradients
from .lora_convolution import (
    lora_convolution_A_gradients,
    lora_convolution_B_gradients,
    lora_convolution_backward,
    lora_convolution_forward,
)
from .lora_embedding import lora_embedding_A_gradients, lora_embedding_forward
from .lora_tasks import lora_tasks_B_gradients, lora_tasks_backward, lora_tasks_forward
from .lora_xs import lora_xs_backward, lora_xs_forward, lora_xs_gradients
from .mean_squared_error import mean_squared_error_backward, mean_squared_error_forward
from .mean_tokens import mean_tokens_backward, mean_tokens_forward
from .projected_attention import projected_attention_backward, projected_attention_forward, projection_gradients
from .quantized_linear import quantized_linear_backward, quantized_linear_forward
from .relative_bias import relative_bias_forward, relative_bias_gradients, relative_buckets
from .relu import relu_backward, relu_forward
from .rms_norm import rms_norm_backward, rms_norm_forward
from .rope import (
    SCALINGS,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
    rope_backward,
    rope_forward,
    rope_frequencies,
    rope_tables,
)
from .select import select_backward, select_forward
from .svf import svf_backward, svf_forward, svf_gradients
from .swiglu import swiglu_backward, swiglu_forward
from .tanh import tanh_backward, tanh_forward
from .token_rows import (
    token_columns_backward,
    token_columns_forward,
    token_places,
    token_rows_backward,
    token_rows_forward,
    token_rows_gradients,
)
from .vera import vera_backward, vera_forward, vera_gradients
