"""pocket-vlm in JAX, from pixels and token ids to logits: an implementation that shares no code with the compiler, used by gradients.py and
fake_quant.py (versions: requirements-goldens.txt).

`constants` says which function is computed; weights are the float16 weights of the folder, arithmetic is float32 or float64:
  hf            the model as trained: eps 1e-6, exact scales, rotary angles not rounded
  onnx          the constants as they stand in the exported graphs (float16 values: eps, attention scale, GELU), casts to float16 as no-ops:
                what tests/oracle/to_f32.py makes of model.onnx
  onnx-casts    as `onnx`, and the explicit casts to float16 round (pixels, rotary angles, their cosine and sine):
                model.onnx in exact arithmetic between its casts; `to_f32.py --keep-rounding`
"""
import math
import os

import jax
import jax.numpy as jnp
import numpy as np

V, P, L = "vision_tower.vision_model.", "multi_modal_projector.", "language_model.model."
DEC = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
VIS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"]
IMAGE_TOKEN, HEAD, LAYERS, VLAYERS = 3, 64, 4, 5
CONSTANTS = ("hf", "onnx", "onnx-casts")
f16 = lambda v: float(np.float16(v))  # noqa: E731
INV_FREQ = np.float32(1) / (10000.0 ** (np.arange(0, HEAD, 2) / HEAD)).astype(np.float32)


def linears():
    """names of every linear, in the order of the graph"""
    out = [f"{V}encoder.layers.{i}.{n}" for i in range(VLAYERS) for n in VIS] + [P + "linear_1", P + "linear_2"]
    return out + [f"{L}layers.{i}.{n}" for i in range(LAYERS) for n in DEC]


def weights(folder, dtype=np.float32):
    from safetensors.numpy import load_file

    w = {k: v.astype(dtype) for k, v in load_file(os.path.join(folder, "model.safetensors")).items()}
    return w


def load_set(path, index=None):
    with np.load(path, allow_pickle=False) as z:
        d = {k: z[k] for k in z.files}
    return d if index is None else {k: v[index] for k, v in d.items()}


def pixels(images):
    """u8 [N,128,128,3] to f32 [N,3,128,128]"""
    return np.ascontiguousarray((images.astype(np.float32) / np.float32(127.5) - np.float32(1)).transpose(0, 3, 1, 2))


class Net:
    """`out(name, y)` is called with the output of every linear (after the bias) and gives what is used in its place; `tap(name, x)` sees its input."""

    def __init__(self, constants, dtype=np.float32):
        assert constants in CONSTANTS
        self.d = dtype
        onnx = constants != "hf"
        self.casts = constants == "onnx-casts"
        self.rms_eps = f16(1e-6) if onnx else 1e-6
        self.ln_eps = float(np.float32(1e-6)) if onnx else 1e-6
        self.qk = f16(math.sqrt(1 / math.sqrt(HEAD))) ** 2 if onnx else 1 / math.sqrt(HEAD)
        self.gelu3 = f16(0.044715) if onnx else 0.044715
        self.gelu1 = f16(math.sqrt(2 / math.pi)) if onnx else math.sqrt(2 / math.pi)
        self.sqrt2 = f16(math.sqrt(2)) if onnx else math.sqrt(2)

    def rotary(self, n):
        a = np.arange(n, dtype=np.float32)[:, None] * INV_FREQ[None]
        if self.casts:
            a = a.astype(np.float16).astype(np.float64)
            return [f(a).astype(np.float32).astype(np.float16).astype(self.d) for f in (np.cos, np.sin)]
        return [f(a.astype(np.float64)).astype(self.d) for f in (np.cos, np.sin)]

    def lin(self, w, n, x, out, tap):
        if tap is not None:
            tap(n, x)
        y = x @ w[n + ".weight"].T
        if n + ".bias" in w:
            y = y + w[n + ".bias"]
        return y if out is None else out(n, y)

    def layer_norm(self, w, n, x):
        c = x - x.mean(-1, keepdims=True)
        return c / jnp.sqrt((c * c).mean(-1, keepdims=True) + self.ln_eps) * w[n + ".weight"] + w[n + ".bias"]

    def rms_norm(self, w, n, x):
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + self.rms_eps) * w[n + ".weight"]

    def attend(self, q, k, v, causal):
        B, N, _ = q.shape
        q, k, v = (t.reshape(B, N, -1, HEAD).transpose(0, 2, 1, 3) for t in (q, k, v))
        if causal:
            c, s = self.rotary(N)

            def turn(t):
                a, b = t[..., : HEAD // 2], t[..., HEAD // 2 :]
                return jnp.concatenate([a * c - b * s, b * c + a * s], -1)

            q, k = turn(q), turn(k)
            r = q.shape[1] // k.shape[1]
            k, v = jnp.repeat(k, r, 1), jnp.repeat(v, r, 1)
        a = jnp.einsum("bhqd,bhkd->bhqk", q, k) * self.qk
        if causal:
            a = jnp.where(np.tril(np.ones((N, N), bool)), a, -jnp.inf)
        o = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(a, -1), v)
        return o.transpose(0, 2, 1, 3).reshape(B, N, -1)

    def vision(self, w, px, out=None, tap=None):
        """px f32 [B,3,128,128]"""
        B = px.shape[0]
        x = px.astype(jnp.float16) if self.casts else px
        x = x.astype(self.d).reshape(B, 3, 16, 8, 16, 8).transpose(0, 2, 4, 1, 3, 5).reshape(B, 256, 192)
        e = V + "embeddings."
        x = x @ w[e + "patch_embedding.weight"].reshape(192, 192).T + w[e + "patch_embedding.bias"] + w[e + "position_embedding.weight"]
        lin = lambda n, t: self.lin(w, n, t, out, tap)  # noqa: E731
        for i in range(VLAYERS):
            p = f"{V}encoder.layers.{i}."
            h = self.layer_norm(w, p + "layer_norm1", x)
            a = self.attend(*(lin(p + f"self_attn.{z}_proj", h) for z in "qkv"), False)
            x = x + lin(p + "self_attn.out_proj", a)
            h = lin(p + "mlp.fc1", self.layer_norm(w, p + "layer_norm2", x))
            x = x + lin(p + "mlp.fc2", 0.5 * h * (1 + jnp.tanh(self.gelu1 * (h + self.gelu3 * h**3))))
        h = lin(P + "linear_1", x)
        return lin(P + "linear_2", 0.5 * h * (1 + jax.scipy.special.erf(h / self.sqrt2)))

    def embed(self, w, ids, feats):
        x = w[L + "embed_tokens.weight"][ids]
        place = ids == IMAGE_TOKEN  # each sample: exactly 256 placeholders
        k = jnp.clip(jnp.cumsum(place, 1) - 1, 0, feats.shape[1] - 1)
        return jnp.where(place[..., None], jnp.take_along_axis(feats, k[..., None], 1), x)

    def decode(self, w, x, out=None, tap=None):
        lin = lambda n, t: self.lin(w, n, t, out, tap)  # noqa: E731
        for i in range(LAYERS):
            p = f"{L}layers.{i}."
            h = self.rms_norm(w, p + "input_layernorm", x)
            x = x + lin(p + "self_attn.o_proj", self.attend(*(lin(p + f"self_attn.{z}_proj", h) for z in "qkv"), True))
            h = self.rms_norm(w, p + "post_attention_layernorm", x)
            g = lin(p + "mlp.gate_proj", h)
            x = x + lin(p + "mlp.down_proj", g * jax.nn.sigmoid(g) * lin(p + "mlp.up_proj", h))
        return self.rms_norm(w, L + "norm", x) @ w[L + "embed_tokens.weight"].T

    def logits(self, w, ids, px, out=None, tap=None):
        return self.decode(w, self.embed(w, ids, self.vision(w, px, out, tap)), out, tap)


def cross_entropy(lg, ids, answer):
    """per sample: mean over the supervised targets; logits at t predict token t + 1"""
    y, m = ids[:, 1:], answer[:, 1:].astype(lg.dtype)
    lp = jax.nn.log_softmax(lg[:, :-1], -1)
    return -(jnp.take_along_axis(lp, y[..., None], -1)[..., 0] * m).sum(1) / m.sum(1)


def direction(size):
    """fixed +-1 pattern over the row-major index of a tensor: -1 where the upper 16 bits of (index * 2654435761 mod 2^32) have odd parity"""
    h = (np.arange(size, dtype=np.uint64) * np.uint64(2654435761) & np.uint64(0xFFFFFFFF)) >> np.uint64(16)
    for s in (8, 4, 2, 1):
        h ^= h >> np.uint64(s)
    return 1.0 - 2.0 * (h & np.uint64(1)).astype(np.float64)
