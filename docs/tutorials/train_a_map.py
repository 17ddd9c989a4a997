# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown] text="en"
# # Experiments with a map that is trained
#
# The advice of [Train a map](../training.md), each with a small experiment behind it. One problem serves all: an image and its columns are given, the map is to be found. What a network learns is harder, but fails for the same reasons.

# %% [markdown] text="zh-CN"
# # 训练扩张率图的实验
#
# [训练扩张率图](../training.md)一页的每条建议，在这里都有一个小实验作为依据。所有实验解决同一个问题：给定图像和它的展开列，求扩张率图。网络要学的更难，但失败的原因是一样的。

# %%
import math

import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import dynamic_dilation_unfold

SIZE = 20


def smooth_image(reach, channels=16):
    """Noise, averaged over ``reach`` x ``reach`` pixels."""
    torch.manual_seed(0)
    noise = torch.randn(1, channels, SIZE + reach - 1, SIZE + reach - 1)
    return F.avg_pool2d(noise, reach, stride=1) * reach


steps = torch.linspace(0, 1, SIZE)
wanted = (0.8 + 0.7 * (steps + steps[:, None])).view(1, 1, SIZE, SIZE)  # 0.8 to 2.2


def fit(image, parameter, to_map=lambda p: p, lr=0.03, noise=0.0, steps=100):
    """Mean distance from the wanted map after some steps of Adam."""
    target = dynamic_dilation_unfold(image, 3, wanted, padding=1)
    target = target + noise * torch.randn_like(target)
    parameter = parameter.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        columns = dynamic_dilation_unfold(image, 3, to_map(parameter), padding=1)
        (columns - target).square().mean().backward()
        optimizer.step()
    return (to_map(parameter) - wanted).abs().mean().item()


ones = torch.ones(1, 1, SIZE, SIZE)
print(f"before training: {(ones - wanted).abs().mean():.3f}")

# %% [markdown] text="en"
# ## The gradient sees one cell
#
# The gradient of a rate is the slope of the image between the four pixels around each tap, and knows nothing of pixels beyond. So it leads to the goal where the image changes slowly enough for that slope to go on. Each line is an image, smoother from line to line; the columns are the rates that training starts from.

# %% [markdown] text="zh-CN"
# ## 梯度只看得见一个单元格
#
# 扩张率的梯度，是图像在采样点周围四个像素之间的斜率，对更远的像素一无所知。因此，只有当图像变化足够缓慢、斜率能够延续时，梯度才指向目标。下面每行是一张图像，逐行更平滑；各列是训练开始时的扩张率。

# %%
print("image     from 1    from 1.5  from 4")
for reach in (1, 3, 7):
    image = smooth_image(reach)
    errors = [fit(image, start * ones) for start in (1.0, 1.5, 4.0)]
    print(f"{reach}x{reach} mean  " + "".join(f"{error:<10.3f}" for error in errors))

# %% [markdown] text="en"
# From 1 or near the goal it works, and better on smooth images. From 4 it fails on every image: the taps start where nothing leads back. Start at 1.
#
# At a whole rate the taps lie on pixels, where bilinear interpolation has a kink. Just below 1 the slope is that of the cells inside, which say little of what lies outside. Share of positions whose gradient points towards the wanted rate:

# %% [markdown] text="zh-CN"
# 从 1 或目标附近出发都能成功，图像越平滑越好。从 4 出发时，在哪张图像上都失败：采样点所在之处，没有任何东西把它们引回来。所以请从 1 开始。
#
# 扩张率为整数时，采样点落在像素上，双线性插值在那里有一个折点。略小于 1 时，斜率来自内侧的单元格，它对外侧几乎一无所知。下面是梯度指向目标的位置所占的比例：

# %%
for reach in (1, 7):
    image = smooth_image(reach)
    target = dynamic_dilation_unfold(image, 3, wanted, padding=1)
    for start in (0.99, 1.0, 1.01):
        rates = (start * ones).requires_grad_()
        (dynamic_dilation_unfold(image, 3, rates, padding=1) - target).square().mean().backward()
        right = (-rates.grad.sign() == (wanted - start).sign()).float().mean()
        print(f"{reach}x{reach} mean, from {start}: {right:.0%}")

# %% [markdown] text="en"
# ## Learning rate
#
# A rate is a length in pixels (times the base dilation). With Adam, the learning rate is about how far it moves in a step: it should come a pixel far within the first hundred steps, and not jump over one.

# %% [markdown] text="zh-CN"
# ## 学习率
#
# 扩张率是以像素为单位的长度（再乘以基础扩张率）。使用 Adam 时，学习率大致就是它每一步移动的距离：前一百步里应能走出一个像素，又不能一步跳过一个像素。

# %%
image = smooth_image(7)
for lr in (0.001, 0.01, 0.1, 1.0):
    print(f"learning rate {lr}: {fit(image, ones, lr=lr):.3f}")

# %% [markdown] text="en"
# ## Bounds
#
# Four ways to keep rates within bounds. `clamp` has no gradient outside its bounds, and a rate that has gone there comes back only by chance; a sigmoid whose upper bound is too low cannot reach the goal, and near its bounds it is slow. Leave room: twice the largest rate that you expect.

# %% [markdown] text="zh-CN"
# ## 界限
#
# 四种限制扩张率范围的方法。`clamp` 在界限之外没有梯度，越界的扩张率只能碰巧回来；上界过低的 sigmoid 到不了目标，而且在界限附近变化缓慢。请留出余地：上界取预期最大扩张率的两倍。

# %%
zeros = torch.zeros_like(ones)
ways = {
    "no bound": (ones, lambda p: p),
    "softplus": (zeros + math.log(math.e - 1), F.softplus),
    "exp": (zeros, torch.exp),
    "4 sigmoid(p - log 3)": (zeros, lambda p: 4 * torch.sigmoid(p - math.log(3))),
    "2 sigmoid(p)": (zeros, lambda p: 2 * torch.sigmoid(p)),
    "clamp(0.5, 2)": (ones, lambda p: p.clamp(0.5, 2)),
}
for name, (start, to_map) in ways.items():
    print(f"{name:22}{fit(image, start, to_map, lr=0.1):.3f}")

# %% [markdown] text="en"
# ## Smoothing
#
# One rate for each position follows the noise of the target. A coarse map that is enlarged cannot, and shares what neighbours know. That is also what a convolution that predicts the map does.

# %% [markdown] text="zh-CN"
# ## 平滑
#
# 逐位置的扩张率会跟着目标中的噪声走。先学一张粗略的图、再放大，就不会如此，而且相邻位置可以共享信息。用卷积来预测扩张率图时也是这样。


# %%
def enlarged(coarse):
    return F.interpolate(coarse, (SIZE, SIZE), mode="bilinear", align_corners=True)


for noise in (0.0, 0.3, 1.0):
    fine, coarse = fit(image, ones, noise=noise), fit(image, torch.ones(1, 1, 6, 6), enlarged, noise=noise)
    print(f"noise {noise}: {fine:.3f} each position by itself, {coarse:.3f} from a 6x6 map")

# %% [markdown] text="en"
# ## Channels
#
# All channels of a group add up to the gradient of one rate: the more there are, the better it knows where to go. A group of one channel has little to go by.

# %% [markdown] text="zh-CN"
# ## 通道
#
# 一个组的所有通道共同构成一个扩张率的梯度：通道越多，方向越可靠；只有一个通道的组，几乎没有依据。

# %%
for channels in (1, 4, 16):
    print(f"{channels} channels: {fit(smooth_image(7, channels), ones):.3f}")
