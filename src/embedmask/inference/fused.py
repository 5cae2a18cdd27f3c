"""A copy of a network for inference alone: norms folded into convolutions, which also add and apply ReLU."""

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
"""What `Head.trunk` gives and `Head.predict` takes."""

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d, FrozenBatchNormAct2d)
RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


class Trunk(nn.Module):
    """An EmbedMask up to `Head.predict`, which stays as it is.

    Attributes:
        head: gives `Predictions` of what `forward` gives.
    """

    def __init__(self, model: EmbedMask, dtype: torch.dtype, *, portable: bool) -> None:
        """Copy `model`, which stays as it is.

        Args:
            model: on its device; the copy is in evaluation mode.
            dtype: of the convolutions, norms and maps.
            portable: public operators of torch alone, for those who translate the network further.
        """
        super().__init__()
        own = copy.deepcopy(model).eval().requires_grad_(False)
        own.head.semantic = None
        on_cpu = model.mean.device.type == "cpu"
        portable = portable or not on_cpu or not has_fused_operators(dtype)
        own.backbone.body = fuse(own.backbone.body, portable=portable)
        for parent in [*own.head.modules()]:
            for name, child in parent.named_children():
                if isinstance(child, ConvNormReLU):
                    setattr(parent, name, fuse(child, portable=portable))
        own.to(memory_format=torch.channels_last)
        self.dtype, self.backbone, self.neck, self.head = dtype, own.backbone, own.neck, own.head
        for part in (self.backbone, self.head):
            for layer in filter(_takes_any_format, part.modules()):
                layer.to(dtype)
        self.neck.to(dtype)
        # a backbone with other layers, which may need float32, decides under autocast
        self.mixed = dtype != torch.float32 and not all(
            _takes_any_format(layer) or not [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
            for layer in self.backbone.modules()
        )

    def forward(self, images: Tensor) -> Maps:
        """Normalised `[N, 3, H, W]` -> the maps that `head.predict` takes, in the trunk's format."""
        images = images.to(self.dtype, memory_format=torch.channels_last)
        with torch.autocast(images.device.type, self.dtype if self.mixed else None, enabled=self.mixed):
            maps = self.backbone(images)
        trunk: Maps = self.head.trunk(self.neck([level.to(self.dtype) for level in maps]))
        return trunk


class FusedConv2d(nn.Module):
    """A convolution that adds another map, if it is given one, and applies ReLU, if asked to, as it writes.

    On the CPU by oneDNN, through the operators that torch's compiler uses.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None, *, relu: bool, portable: bool) -> None:
        """`conv`, then `norm` in evaluation, then ReLU."""
        super().__init__()
        weight, bias = conv.weight, conv.bias
        if norm is not None:
            scale, shift = _affine(norm)
            weight = weight * scale.view(-1, 1, 1, 1)
            bias = shift if bias is None else bias * scale + shift
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        assert isinstance(conv.padding, tuple)
        self.how = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.relu, self.portable = relu, portable
        steps = zip(conv.kernel_size, conv.padding, conv.stride, conv.dilation, strict=True)
        self.keeps_size = all(s == 1 and 2 * p == d * (k - 1) for k, p, s, d in steps)

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """`[N, C, H, W]`; `other`, which has the result's shape or is broadcast to it, may be overwritten."""
        fused, (padding, stride, dilation, groups) = torch.ops.mkldnn, self.how
        layer = (x, self.weight, self.bias, padding, stride, dilation, groups)
        if not self.portable and x.dtype == self.weight.dtype:
            if other is None:
                result: Tensor = fused._convolution_pointwise(*layer, "relu" if self.relu else "none", [], "")
                return result
            if self._can_write_on(other, x):
                after: tuple[Any, ...] = ("add", 1.0, "relu" if self.relu else None, [], "")
                fused._convolution_pointwise_.binary(other, *layer, *after)
                return other
        result = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        result = result if other is None else result + other
        return result.relu_() if self.relu else result

    def _can_write_on(self, other: Tensor, x: Tensor) -> bool:
        shape = (x.shape[0], self.weight.shape[0], *x.shape[2:])
        return self.keeps_size and other.dtype == x.dtype and other.shape == shape


def has_fused_operators(dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN's fused convolutions (private, so a version may lack them) and they take `dtype`."""
    known = hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    known = known and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
    if dtype == torch.bfloat16:
        return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return known and dtype == torch.float32


def fuse(module: nn.Module, *, portable: bool) -> nn.Module:
    """The same function with `FusedConv2d` wherever a convolution is followed by what it can do itself.

    Args:
        module: in evaluation mode; its layers are reused. One whose code depends on its input is given back as it is.
        portable: see `Trunk`.
    """
    try:
        graph = _Tracer().trace(module)
    except Exception:  # tracing runs foreign code with stand-ins for tensors: anything may come of it
        return module
    info = getattr(module, "feature_info", None)
    (results,) = graph.output_node().args
    if info is not None and not (isinstance(results, Sequence) and len(results) == len(info.channels())):
        return module  # hooks gather the maps, which tracing does not see
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
    """Replace a convolution and what follows it by one `FusedConv2d`, called `name`."""
    conv, chain = _layer(traced, node), [node]
    assert isinstance(conv, nn.Conv2d)
    if len(node.args) != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return
    norm, other = _only_user(node), None
    activation: nn.Module = nn.Identity()
    norm_layer = _layer(traced, norm)
    if norm is not None and _is_foldable(norm_layer):
        chain.append(norm)
        # timm has norms that end with an activation
        activation = getattr(norm_layer, "act", activation)
    else:
        norm_layer = None
    relu = isinstance(activation, nn.ReLU)
    if isinstance(activation, nn.Identity):
        other, after = _sum_and_relu(traced, chain[-1])
        chain += after
        relu = bool(after)
    if len(chain) == 1:
        return
    traced.add_submodule(name, FusedConv2d(conv, norm_layer, relu=relu, portable=portable))
    with traced.graph.inserting_before(chain[-1]):
        new = traced.graph.call_module(name, (*node.args, *(() if other is None else (other,))))
        if not relu and not isinstance(activation, nn.Identity):
            traced.add_submodule(f"{name}_activation", activation)
            new = traced.graph.call_module(f"{name}_activation", (new,))
    chain[-1].replace_all_uses_with(new)
    for old in reversed(chain):
        traced.graph.erase_node(old)


def _sum_and_relu(traced: fx.GraphModule, node: fx.Node) -> tuple[fx.Node | None, list[fx.Node]]:
    """What is added to a node's result before ReLU, if anything, and the nodes that do both; none without ReLU."""
    user = _only_user(node)
    if _is_one_of(user, traced, RELUS):
        return None, [user]
    relu = _only_user(user)
    if _is_one_of(user, traced, SUMS) and _is_one_of(relu, traced, RELUS):
        others = [other for other in user.args if other is not node]
        if len(user.args) == 2 and len(others) == 1 and _may_be_overwritten(others[0], traced, user):
            return others[0], [user, relu]
    return None, []


def _may_be_overwritten(other: object, traced: fx.GraphModule, at: fx.Node) -> TypeGuard[fx.Node]:
    """Whether nobody reads a result after the node `at`, neither itself nor through a view of it."""
    if not isinstance(other, fx.Node) or not _is_fresh(traced, other):
        return False
    return all(user is at or (user < at and _is_fresh(traced, user)) for user in other.users)


def _is_fresh(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's result shares no memory with what it was made from."""
    return isinstance(_layer(traced, node), FusedConv2d | nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)


def _is_one_of(
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
    """The layer that a node calls, if it calls one."""
    return traced.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def _is_foldable(layer: nn.Module | None) -> bool:
    """Whether a layer is a fixed affine map of each channel."""
    fixed = isinstance(layer, NORMS) and getattr(layer, "running_mean", None) is not None
    return fixed and isinstance(getattr(layer, "drop", nn.Identity()), nn.Identity)


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Factor and shift of each channel."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is None:
        return scale, -norm.running_mean * scale
    return scale * norm.weight, norm.bias - norm.running_mean * scale * norm.weight


def _takes_any_format(layer: nn.Module) -> bool:
    return type(layer) in (nn.Conv2d, nn.Linear, nn.GroupNorm, FusedConv2d)
