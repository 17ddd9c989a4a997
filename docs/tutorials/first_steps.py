# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown] text="en"
# # First steps
#
# Ten minutes with the operator: what a dilation map does to a window, a map that differs from place to place, gradients of image and map, groups.

# %% [markdown] text="zh-CN"
# # 第一步
#
# 用十分钟了解这个算子：扩张率图如何改变卷积核的采样点，如何让它随位置变化，如何得到图像和扩张率图的梯度，以及分组。

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from dynamic_dilation_unfold import dynamic_dilation_unfold

torch.manual_seed(0)
plt.rcParams["figure.dpi"] = 80

# %% [markdown] text="en"
# ## One rate
#
# An image whose pixel in row 3 and column 3 is the only one that is not 0. `F.unfold` brings the nine pixels around each position into a column. With a map of ones, so does this operator, to the bit.

# %% [markdown] text="zh-CN"
# ## 一个扩张率
#
# 先取一张图像，只有第 3 行第 3 列的像素不为 0。`F.unfold` 把每个位置周围的九个像素放进一列；扩张率图全为 1 时，本算子的结果与它逐位相同。

# %%
image = torch.zeros(1, 1, 7, 7)
image[0, 0, 3, 3] = 1
ones = torch.ones(1, 1, 7, 7)  # a rate for each output position

columns = dynamic_dilation_unfold(image, kernel_size=3, dilation_map=ones, padding=1)
print(columns.shape)
assert torch.equal(columns, F.unfold(image, kernel_size=3, padding=1))

# %% [markdown] text="en"
# The taps of the position in the middle, as a 3x3 picture, for four rates. They move along the lines from the centre. Between pixels they read the image bilinearly: at a rate of 0.5 the taps beside the centre see half of the pixel, those at the corners a quarter.

# %% [markdown] text="zh-CN"
# 下面取中间位置的采样点，排成 3x3，看四个扩张率。采样点沿着从中心出发的直线移动；落在像素之间时做双线性采样：扩张率为 0.5 时，中心旁边的采样点得到该像素的一半，角上的得到四分之一。

# %%
for rate in (0.0, 0.5, 1.0, 2.0):
    columns = dynamic_dilation_unfold(image, 3, rate * ones, padding=1)
    taps = columns.view(3, 3, 7, 7)[:, :, 3, 3]
    print(f"rate {rate}:", taps.tolist())

# %% [markdown] text="en"
# ## A rate for each place
#
# Here the rate grows from left to right. The mean of the 25 taps of a 5x5 window is then a blur that grows too.

# %% [markdown] text="zh-CN"
# ## 每个位置一个扩张率
#
# 让扩张率从左到右逐渐增大，5x5 个采样点的均值就成为一种从左到右逐渐增强的模糊。

# %%
size = 64
image = torch.zeros(1, 1, size, size)
image[..., ::8, :] = 1
image[..., :, ::8] = 1
rates = torch.linspace(0, 3, size).expand(1, 1, size, size)

columns = dynamic_dilation_unfold(image, 5, rates, padding=2)
blurred = columns.view(25, size, size).mean(0)

figure, axes = plt.subplots(1, 3, figsize=(9, 3))
for axis, values in zip(axes, (image[0, 0], rates[0, 0], blurred), strict=True):
    axis.imshow(values, interpolation="nearest")
    axis.set_axis_off()

# %% [markdown] text="en"
# ## Gradients
#
# Both tensors have gradients. That of the map says whether a loss falls if the taps of a position move outwards or inwards. A loss that wants the blurred values larger:

# %% [markdown] text="zh-CN"
# ## 梯度
#
# 两个张量都有梯度。扩张率图的梯度表示：某个位置的采样点向外或向内移动时，损失是否下降。例如一个希望均值变大的损失：

# %%
image.requires_grad_()
learnt = rates.clone().requires_grad_()
loss = -dynamic_dilation_unfold(image, 5, learnt, padding=2).mean()
loss.backward()
print("image:", tuple(image.grad.shape), " map:", tuple(learnt.grad.shape))
print(f"positions whose taps should move: {learnt.grad.ne(0).float().mean():.0%}")

# %% [markdown] text="en"
# ## Groups
#
# With `groups=G` the channels are cut into G groups with a map each. A map may have one row, one column or one rate: `[1, G, 1, 1]` is a rate for each group.

# %% [markdown] text="zh-CN"
# ## 分组
#
# 设 `groups=G` 时，通道分成 G 组，每组有自己的扩张率图。扩张率图可以只有一行、一列或一个值：`[1, G, 1, 1]` 表示每组一个扩张率。

# %%
features = torch.randn(1, 8, 16, 16)
scales = torch.tensor([0.5, 1.0, 2.0, 4.0]).view(1, 4, 1, 1)
columns = dynamic_dilation_unfold(features, 3, scales, padding=1, groups=4)
print(columns.shape)

# %% [markdown] text="en"
# Next: [which operator for what](../operators.md), and [how a map is trained](../training.md).

# %% [markdown] text="zh-CN"
# 接下来：[选用哪个算子](../operators.md)，以及[如何训练扩张率图](../training.md)。
