"""A copy of the network for inference: norms are folded into convolutions, which also add and apply ReLU.

Folding with public operators alone takes 131 fewer lines. In bfloat16 it is 3 to 4 % slower (one thread, Intel Xeon
with AMX; in float32 5 % faster), and it rounds sums to bfloat16 before they are added: mask AP50 of `nuclei` on nuclei
val moves by 0.002. The private operators stay for that figure; `has_fused_operators` falls back where torch lacks them.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.ops.misc import FrozenBatchNorm2d

from embedmask.model.embedmask import EmbedMask
from embedmask.model.layers import ConvNormReLU

Maps = tuple[Tensor, list[Tensor], list[Tensor]]
"""Outputs of `Head.trunk`, inputs of `Head.predict`."""

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d, FrozenBatchNormAct2d)
RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


class Trunk(nn.Module):
    """An EmbedMask without `Head.predict`, fused for inference.

    Attributes:
        head: its `predict` turns the output of `forward` into `Predictions`.
    """

    def __init__(self, model: EmbedMask, dtype: torch.dtype, *, portable: bool) -> None:
        """Copy and fuse `model`, which is not changed.

        Args:
            model: on its device; the copy is in evaluation mode.
            dtype: of the convolutions, norms and maps.
            portable: use public operators of torch only, for the conversion to another runtime.
        """
        super().__init__()
        fused = copy.deepcopy(model).eval().requires_grad_(False)
        fused.head.semantic = None
        on_cpu = model.mean.device.type == "cpu"
        portable = portable or not on_cpu or not has_fused_operators(dtype)
        fused.backbone.body = fuse(fused.backbone.body, portable=portable)
        for parent in [*fused.head.modules()]:
            for name, child in parent.named_children():
                if isinstance(child, ConvNormReLU):
                    setattr(parent, name, fuse(child, portable=portable))
        fused.to(memory_format=torch.channels_last)
        self.dtype, self.backbone, self.neck, self.head = dtype, fused.backbone, fused.neck, fused.head
        for part in (self.backbone, self.head):
            for layer in filter(_takes_any_dtype, part.modules()):
                layer.to(dtype)
        self.neck.to(dtype)
        # other layers of a backbone may need float32: autocast decides for each operator
        self.mixed = dtype != torch.float32 and not all(
            _takes_any_dtype(layer) or not [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
            for layer in self.backbone.modules()
        )

    def forward(self, images: Tensor) -> Maps:
        """Compute the inputs of `head.predict` from normalized images `[N, 3, H, W]`, in the trunk's dtype."""
        images = images.to(self.dtype, memory_format=torch.channels_last)
        with torch.autocast(images.device.type, self.dtype if self.mixed else None, enabled=self.mixed):
            maps = self.backbone(images)
        trunk: Maps = self.head.trunk(self.neck([level.to(self.dtype) for level in maps]))
        return trunk


class FusedConv2d(nn.Module):
    """A convolution with a folded norm that can add another map and apply ReLU as it writes its result.

    On the CPU it runs on oneDNN, through the operators that torch's compiler uses.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None, *, relu: bool, portable: bool) -> None:
        """Fold `norm`, as in evaluation mode, into `conv`."""
        super().__init__()
        weight, bias = conv.weight, conv.bias
        if norm is not None:
            # norm(y) = scale * y + shift per channel, with scale = weight / sqrt(var + eps)
            layer: Any = norm
            scale = (layer.running_var + layer.eps).rsqrt()
            shift = -layer.running_mean * scale
            if layer.weight is not None:
                scale, shift = scale * layer.weight, layer.bias + shift * layer.weight
            weight = weight * scale.view(-1, 1, 1, 1)  # [C_out, C_in, k, k]
            bias = shift if bias is None else bias * scale + shift
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        assert isinstance(conv.padding, tuple)
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.relu, self.portable = relu, portable
        steps = zip(conv.kernel_size, conv.padding, conv.stride, conv.dilation, strict=True)
        self.keeps_size = all(s == 1 and 2 * p == d * (k - 1) for k, p, s, d in steps)

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Compute the convolution of `x` `[N, C, H, W]`, add `other` and apply ReLU.

        Args:
            other: broadcast to the shape of the result; it may be overwritten.
        """
        fused, (padding, stride, dilation, groups) = torch.ops.mkldnn, self.geometry
        layer = (x, self.weight, self.bias, padding, stride, dilation, groups)
        if not self.portable and x.dtype == self.weight.dtype:
            if other is None:
                result: Tensor = fused._convolution_pointwise(*layer, "relu" if self.relu else "none", [], "")
                return result
            # the sum is accumulated in place: `other` must have the shape and dtype of the result
            shape = (x.shape[0], self.weight.shape[0], *x.shape[2:])
            if self.keeps_size and other.dtype == x.dtype and other.shape == shape:
                after: tuple[Any, ...] = ("add", 1.0, "relu" if self.relu else None, [], "")
                fused._convolution_pointwise_.binary(other, *layer, *after)
                return other
        result = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        result = result if other is None else result + other
        return result.relu_() if self.relu else result


def has_fused_operators(dtype: torch.dtype) -> bool:
    """Return whether torch has oneDNN's fused convolutions, which are private operators, and they accept `dtype`."""
    known = hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    known = known and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
    if dtype == torch.bfloat16:
        return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return known and dtype == torch.float32


def fuse(module: nn.Module, *, portable: bool) -> nn.Module:
    """Replace each convolution and the norm, sum and ReLU after it by a `FusedConv2d`.

    Args:
        module: in evaluation mode; its layers are reused.
        portable: see `Trunk`.

    Returns:
        A module that computes the same, or `module` itself where it cannot be traced.
    """
    try:
        graph = _Tracer().trace(module)
    except Exception:  # tracing runs code of other libraries on proxies, which may raise anything
        return module
    info = getattr(module, "feature_info", None)
    (results,) = graph.output_node().args
    if info is not None and not (isinstance(results, Sequence) and len(results) == len(info.channels())):
        return module  # the maps are collected by hooks, which tracing does not record
    traced = fx.GraphModule(module, graph)
    for node in list(graph.nodes):
        if isinstance(_layer(traced, node), nn.Identity | nn.Dropout):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for index, node in enumerate(list(graph.nodes)):
        if type(_layer(traced, node)) is nn.Conv2d:
            _fuse_from(traced, node, f"fused{index}", portable)
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, *NORMS)) or super().is_leaf_module(m, module_qualified_name)


def _fuse_from(traced: fx.GraphModule, node: fx.Node, name: str, portable: bool) -> None:
    """Replace a convolution and the operators after it by one `FusedConv2d` called `name`."""
    conv, chain = _layer(traced, node), [node]
    assert isinstance(conv, nn.Conv2d)
    if len(node.args) != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return
    norm = _only_user(node)
    norm_layer = _layer(traced, norm)
    activation: nn.Module = nn.Identity()
    # a norm folds where it is a fixed affine map of each channel
    is_fixed = isinstance(norm_layer, NORMS) and getattr(norm_layer, "running_mean", None) is not None
    if norm is not None and is_fixed and isinstance(getattr(norm_layer, "drop", activation), nn.Identity):
        chain.append(norm)
        activation = getattr(norm_layer, "act", activation)  # some norms of timm end with one
    else:
        norm_layer = None
    other, after = _sum_and_relu(traced, chain[-1]) if isinstance(activation, nn.Identity) else (None, [])
    chain += after
    relu = bool(after) or isinstance(activation, nn.ReLU)
    if len(chain) == 1:
        return
    traced.add_submodule(name, FusedConv2d(conv, norm_layer, relu=relu, portable=portable))
    with traced.graph.inserting_before(chain[-1]):
        new = traced.graph.call_module(name, (*node.args, *(() if other is None else (other,))))
        if not relu and not isinstance(activation, nn.Identity):
            traced.add_submodule(f"{name}_activation", activation)
            new = traced.graph.call_module(f"{name}_activation", (new,))
    chain[-1].replace_all_uses_with(new)
    for old in reversed(chain):  # a node with users cannot be erased
        traced.graph.erase_node(old)


def _sum_and_relu(traced: fx.GraphModule, node: fx.Node) -> tuple[fx.Node | None, list[fx.Node]]:
    """Match `relu(node)` or `relu(node + other)`.

    Returns:
        `other`, None without a sum; the nodes of sum and ReLU, empty without a match.
    """
    # relu(node): each intermediate result must have a single user, because fusing removes it
    user = _only_user(node)
    if _calls_one_of(user, traced, RELUS):
        return None, [user]
    # relu(node + other), in either order of the arguments
    relu = _only_user(user)
    if not (_calls_one_of(user, traced, SUMS) and _calls_one_of(relu, traced, RELUS)):
        return None, []
    others = [other for other in user.args if other is not node]
    # torch.add(node, other, alpha) has a third argument, `node + node` no other, `node + 1` no node
    if len(user.args) != 2 or len(others) != 1 or not isinstance(other := others[0], fx.Node):
        return None, []
    # the convolution writes its result into the memory of `other`, so no operator may read that memory afterwards.
    # `other` must own its memory (its producer makes a new tensor), and each of its users must either be this sum,
    # or run before it and make a new tensor: a view that it returned could be read later
    is_unread = all(u is user or (u < user and _makes_new_tensor(traced, u)) for u in other.users)
    return (other, [user, relu]) if _makes_new_tensor(traced, other) and is_unread else (None, [])


def _makes_new_tensor(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether the result of a node shares no memory with its inputs."""
    return isinstance(_layer(traced, node), FusedConv2d | nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)


def _calls_one_of(
    node: fx.Node | None, traced: fx.GraphModule, functions: Sequence[object]
) -> TypeGuard[fx.Node]:
    is_function = (
        node is not None and node.op in ("call_function", "call_method") and node.target in functions
    )
    return is_function or (functions is RELUS and isinstance(_layer(traced, node), nn.ReLU))


def _only_user(node: fx.Node | None) -> fx.Node | None:
    users = [] if node is None else [*node.users]
    return users[0] if len(users) == 1 else None


def _layer(traced: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    """Return the layer that a node calls; None for other operators."""
    return traced.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def _takes_any_dtype(layer: nn.Module) -> bool:
    return type(layer) in (nn.Conv2d, nn.Linear, nn.GroupNorm, FusedConv2d)
