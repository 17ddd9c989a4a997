// Blur an image more where a map says so, and find out how each pixel and each rate of the map moves the result.
//
// The columns of a 3x3 unfold hold nine samples around each pixel; their mean is a box blur whose width is the rate.

#include <ddu/error.h>
#include <ddu/unfold.h>
#include <ddu/version.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

namespace {

constexpr std::int64_t kHeight = 48, kWidth = 64;
constexpr ddu::Types kTypes{ddu::DType::float32, ddu::DType::float32};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

/// Scratch memory is the caller's, aligned to 64 bytes.
std::unique_ptr<void, Free> scratch(std::size_t bytes) {
  return std::unique_ptr<void, Free>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
}

int run() {
  const int threads = static_cast<int>(std::thread::hardware_concurrency());
  std::printf("libddu %s, %s kernels, %s\n", ddu::version(), ddu::cpu::capability(),
              ddu::cpu::has_openmp() ? "parallel" : "one thread");

  // A checkerboard, and rates that grow from 0 (sharp) at the left to 3 (blurred) at the right.
  std::vector<float> image(kHeight * kWidth), rates(kHeight * kWidth);
  for (std::size_t i = 0; i < image.size(); ++i) {
    const std::size_t y = i / kWidth, x = i % kWidth;
    image[i] = static_cast<float>((y / 2 + x / 2) % 2);
    rates[i] = 3.0F * static_cast<float>(x) / static_cast<float>(kWidth - 1);
  }

  ddu::Options options;
  options.kernel_size[0] = options.kernel_size[1] = 3;
  options.padding[0] = options.padding[1] = 1;
  const std::int64_t sizes[] = {1, 1, kHeight, kWidth};
  const ddu::Geometry geometry = ddu::make_geometry({sizes, 4}, {sizes, 4}, options);

  std::vector<float> columns(static_cast<std::size_t>(geometry.columns_numel()));
  ddu::Unfold unfold{image.data(), rates.data(), columns.data()};
  const auto unfold_workspace = scratch(ddu::cpu::unfold_workspace_bytes(geometry, kTypes, unfold, threads));
  unfold.workspace = unfold_workspace.get();
  ddu::cpu::unfold(geometry, kTypes, unfold, threads);

  const std::size_t positions = image.size(), taps = columns.size() / positions;
  std::vector<float> blurred(positions);
  for (std::size_t i = 0; i < columns.size(); ++i) blurred[i % positions] += columns[i] / static_cast<float>(taps);
  for (std::size_t y = 20; y < 28; ++y) {
    for (std::size_t x = 0; x < kWidth; ++x) {
      std::putchar(" .:-=+*%"[static_cast<std::size_t>(blurred[y * kWidth + x] * 7.0F)]);
    }
    std::putchar('\n');
  }

  // Gradients of the sum of the blurred image.
  const std::vector<float> grad(columns.size(), 1.0F / static_cast<float>(taps));
  std::vector<float> grad_image(image.size()), grad_rates(rates.size());
  ddu::UnfoldBackward backward{grad.data(), image.data(), rates.data(), grad_image.data(), grad_rates.data(), nullptr};
  const auto workspace = scratch(ddu::cpu::unfold_backward_workspace_bytes(geometry, kTypes, backward, threads));
  backward.workspace = workspace.get();
  ddu::cpu::unfold_backward(geometry, kTypes, backward, threads);

  // The operator is linear in the image, so its gradient times the image is the sum itself.
  double given = 0, sum = 0;
  for (std::size_t i = 0; i < positions; ++i)
    given += static_cast<double>(grad_image[i] * image[i]), sum += static_cast<double>(blurred[i]);
  std::printf("sum of the blurred image %.3f; by its gradient %.3f\n", sum, given);
  const double difference = sum - given;
  return difference < 1e-2 && difference > -1e-2 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const ddu::error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return EXIT_FAILURE;
  }
}
