// Train a convolution that chooses its dilation at each position.
//
// What is near looks large. From an image and the nearness of each point, the model learns a point's contrast with its
// surroundings at the size that things have there.   libtorch_app [STEPS] [DEVICE]

#include <ddu/torch.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <utility>

namespace {

struct AdaptiveConvImpl : torch::nn::Module {
  AdaptiveConvImpl(std::int64_t channels, std::int64_t out_channels) {
    rates = register_module("rates", torch::nn::Conv2d(torch::nn::Conv2dOptions(channels, 1, 5).padding(2)));
    conv = register_module("conv", torch::nn::Conv2d(torch::nn::Conv2dOptions(channels, out_channels, 3)));
    // The map starts at 1 everywhere, where the model is a plain convolution.
    torch::nn::init::zeros_(rates->weight);
    torch::nn::init::constant_(rates->bias, -std::log(3.0));
  }

  torch::Tensor forward(const torch::Tensor& x) {
    return ddu::torch_conv2d(x, conv->weight, 4 * rates(x).sigmoid(), conv->bias, {.padding = {1, 1}});
  }

  torch::nn::Conv2d rates = nullptr;
  torch::nn::Conv2d conv = nullptr;  // its parameters
};
TORCH_MODULE(AdaptiveConv);

/// Images with their nearness [N, 2, H, W], and the contrast at the size that goes with it [N, 1, H, W].
std::pair<torch::Tensor, torch::Tensor> scene(std::int64_t count, std::int64_t size, torch::Device device) {
  namespace F = torch::nn::functional;
  const torch::Tensor noise = torch::randn({count, 1, size + 4, size + 4}, device);
  const torch::Tensor image = F::avg_pool2d(noise, F::AvgPool2dFuncOptions(5).stride(1)) * 5;
  const torch::Tensor near = torch::rand({count, 1, 3, 3}, device).repeat_interleave(size / 3 + 1, 2);
  const torch::Tensor nearness = near.repeat_interleave(size / 3 + 1, 3).narrow(2, 0, size).narrow(3, 0, size).contiguous();
  const torch::Tensor columns = ddu::torch_unfold(image, {3, 3}, 0.5 + 3 * nearness, {.padding = {1, 1}});
  const torch::Tensor mean = columns.mean(1, true).reshape({count, 1, size, size});
  return {torch::cat({image, nearness}, 1), image - mean};
}

int run(int steps, torch::Device device) {
  torch::manual_seed(0);
  AdaptiveConv model(2, 1);
  model->to(device);
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(0.02));
  double first = 0, last = 0;
  for (int step = 0; step < steps; ++step) {
    const auto [images, contrast] = scene(8, 32, device);
    const torch::Tensor loss = (model(images) - contrast).square().mean();
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    if (step == 0) first = last;
    if (step % 20 == 0 || step == steps - 1) std::printf("step %3d  loss %.4f\n", step, last);
  }
  const bool map_learnt = model->rates->weight.abs().max().item<double>() > 0.01;
  std::printf("loss %.4f -> %.4f; the map %s\n", first, last, map_learnt ? "has learnt" : "has not moved");
  return last < 0.5 * first && map_learnt ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return run(count > 1 ? std::atoi(arguments[1]) : 100, torch::Device(count > 2 ? arguments[2] : "cpu"));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return EXIT_FAILURE;
  }
}
