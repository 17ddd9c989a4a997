// The CUDA kernels of attention against its definition, by way of the oracle's columns.

#include "cuda_call.h"
#include "ddu/attention.h"
#include "heads_oracle.h"

namespace {

using cuda_call::any_rates;
using cuda_call::error;
using cuda_call::has_device;
using cuda_call::Memory;
using cuda_call::near_rates;
using cuda_call::turned;
using cuda_call::Workspace;
using oracle::HeadCase;
using oracle::Sum;
using oracle::Tensor;

// Heads of one lane, of several, and of more lanes than channels fill; several heads a group and one; several units a warp; a
// map for all images; strides, even kernels, windows that miss the image; border.
const HeadCase kCases[] = {
    {{2, 64, 6, 8, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 4},
    {{1, 24, 9, 10, {{3, 5}, {2, 1}, {1, 2}, {1, 2}, 3}}, 3},
    {{2, 16, 7, 5, {{2, 2}, {1, 1}, {3, 3}, {1, 1}, 2, ddu::PaddingMode::border}, true}, 4},
    {{1, 48, 5, 7, {{7, 7}, {1, 1}, {3, 3}, {1, 1}, 1}, true}, 2},
    {{2, 16, 4, 4, {{2, 2}, {1, 1}, {3, 3}, {1, 1}, 1}}, 1},
    {{1, 64, 17, 19, {{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}}, 8},  // near rates make lists of pixels, others too many
};

template <class T, class M>
struct Problem : oracle::HeadProblem<T, M> {
  Tensor<T> value, grad;     // values of this are the query, its image is the key
  Tensor<float> bias;        // [heads, taps], or of every score
  bool bias_of_all = false;  // which of the two
  double scale = 0.3;

  Problem(const HeadCase& c, const std::function<double(std::mt19937&)>& rate, bool bias_of_all = false)
      : oracle::HeadProblem<T, M>(c, rate),
        value(this->h.geometry.input_numel()),
        grad(this->h.values_numel()),
        bias(bias_of_all ? this->h.factors_numel() : c.heads * this->h.geometry.taps()),
        bias_of_all(bias_of_all) {
    std::mt19937 random(2);
    std::normal_distribution<double> normal;
    for (Tensor<T>* tensor : {&value, &grad})
      for (std::size_t i = 0; i < tensor->size(); ++i) tensor->set(std::int64_t(i), normal(random));
    for (std::size_t i = 0; i < bias.size(); ++i) bias.set(std::int64_t(i), normal(random));
  }
};

/// With gradients, or the output alone.
struct Results {
  std::vector<Sum> output, query, key, value, map, scores;
};

/// Sums over the elements of [batch, channels, taps, positions] as the definition has them.
template <class T, class M>
Results expected_of(const Problem<T, M>& problem) {
  const ddu::HeadGeometry& h = problem.h;
  const ddu::Geometry& g = h.geometry;
  const std::int64_t positions = g.positions(), taps = g.taps(), scores = g.batch * h.heads * taps * positions;
  const auto doubles = [](const auto& tensor) {
    Tensor<double> to(std::int64_t(tensor.size()));
    for (std::size_t i = 0; i < tensor.size(); ++i) to.set(std::int64_t(i), tensor[std::int64_t(i)]);
    return to;
  };
  const Tensor<double> key = doubles(problem.image), value = doubles(problem.value);
  Tensor<double> ones(g.input_numel()), of_key(g.columns_numel()), of_value(g.columns_numel()), of_ones(g.columns_numel());
  for (std::size_t i = 0; i < ones.size(); ++i) ones.set(std::int64_t(i), 1);
  for (Tensor<double>* tensor : {&of_key, &of_value, &of_ones})
    for (std::size_t i = 0; i < tensor->size(); ++i) tensor->set(std::int64_t(i), 0);
  const auto keys = oracle::run(g, key, problem.map, of_key).output, values = oracle::run(g, value, problem.map, of_key).output,
             shares = oracle::run(g, ones, problem.map, of_key).output;
  Results r;
  r.output.resize(std::size_t(h.values_numel()));
  r.query.resize(std::size_t(h.values_numel()));
  r.scores.resize(std::size_t(scores));
  const std::int64_t channels = h.head_channels();
  for (std::int64_t b = 0; b < g.batch; ++b)
    for (std::int64_t head = 0; head < h.heads; ++head)
      for (std::int64_t at = 0; at < positions; ++at) {
        const auto column = [&](std::int64_t c, std::int64_t t) {
          return std::size_t(((b * g.channels + head * channels + c) * taps + t) * positions + at);
        };
        const auto element = [&](std::int64_t c) { return (b * g.channels + head * channels + c) * positions + at; };
        std::vector<double> weight, share;
        double largest = -INFINITY, total = 0, mean = 0;
        for (std::int64_t t = 0; t < taps; ++t) {
          double score =
              problem.bias[problem.bias_of_all ? ((b * h.heads + head) * taps + t) * positions + at : head * taps + t];
          for (std::int64_t c = 0; c < channels; ++c)
            score += problem.scale * problem.values[element(c)] * keys[column(c, t)].value;
          share.push_back(shares[column(0, t)].value);
          weight.push_back(score);
          if (share.back() != 0) largest = std::fmax(largest, score);
        }
        for (std::int64_t t = 0; t < taps; ++t) {
          double& w = weight[std::size_t(t)];
          w = share[std::size_t(t)] == 0 ? 0 : std::exp(w - largest);
          total += share[std::size_t(t)] * w;
        }
        for (double& w : weight) w = total == 0 ? 0 : w / total;
        for (std::int64_t c = 0; c < channels; ++c) {
          Sum& output = r.output[std::size_t(element(c))];
          for (std::int64_t t = 0; t < taps; ++t) output.add(weight[std::size_t(t)] * values[column(c, t)].value);
          mean += output.value * problem.grad[element(c)];
        }
        for (std::int64_t t = 0; t < taps; ++t) {
          const double w = weight[std::size_t(t)];
          double slope = -share[std::size_t(t)] * mean;
          for (std::int64_t c = 0; c < channels; ++c) slope += problem.grad[element(c)] * values[column(c, t)].value;
          r.scores[std::size_t(((b * h.heads + head) * taps + t) * positions + at)].add(w * slope);
          of_ones.set(std::int64_t(column(0, t)), -w * mean);
          for (std::int64_t c = 0; c < channels; ++c) {
            r.query[std::size_t(element(c))].add(problem.scale * w * slope * keys[column(c, t)].value);
            of_key.set(std::int64_t(column(c, t)), problem.scale * w * slope * problem.values[element(c)]);
            of_value.set(std::int64_t(column(c, t)), w * problem.grad[element(c)]);
          }
        }
      }
  const auto by_key = oracle::run(g, key, problem.map, of_key), by_value = oracle::run(g, value, problem.map, of_value),
             by_share = oracle::run(g, ones, problem.map, of_ones);
  r.key = by_key.grad_input;
  r.value = by_value.grad_input;
  for (std::size_t i = 0; i < by_key.grad_map.size(); ++i) {
    r.map.push_back({by_key.grad_map[i].value + by_value.grad_map[i].value + by_share.grad_map[i].value,
                     by_key.grad_map[i].magnitude + by_value.grad_map[i].magnitude + by_share.grad_map[i].magnitude});
  }
  return r;
}

/// Calls both directions and compares what is `wanted`: gradients of query, key, value, map and scores, a bit each.
template <class T, class M>
void expect(const Problem<T, M>& problem, const Results& expected, bool channels_last, unsigned wanted = 31) {
  SCOPED_TRACE(testing::Message() << (channels_last ? "channels last" : "planes") << ", wanted " << wanted);
  const ddu::HeadGeometry& h = problem.h;
  const ddu::Geometry& g = h.geometry;
  const auto formatted = [&](const Tensor<T>& tensor, std::int64_t count, bool back = false) {
    return channels_last ? turned(g.batch, g.channels, count, tensor, back) : turned(g.batch, 1, g.channels * count, tensor);
  };
  const auto format = channels_last ? ddu::MemoryFormat::channels_last : ddu::MemoryFormat::contiguous;
  ASSERT_TRUE(ddu::cuda::attention_supported(h, problem.types(), format));
  const Memory query(formatted(problem.values, g.positions())), key(formatted(problem.image, g.pixels())),
      value(formatted(problem.value, g.pixels())), map(problem.map), bias(problem.bias),
      grad(formatted(problem.grad, g.positions())), output(problem.grad.size() * sizeof(T)),
      normalizers(std::size_t(g.batch * h.heads * g.positions()) * sizeof(float));
  ddu::Attention tensors{};
  tensors.query = query.data();
  tensors.key = key.data();
  tensors.value = value.data();
  tensors.dilation_map = map.data();
  tensors.bias = static_cast<const float*>(bias.data());
  const std::int64_t one = g.taps() * g.positions();
  const std::int64_t of_all[] = {h.heads * one, one, g.positions(), 1}, of_heads[] = {0, g.taps(), 1, 0};
  std::copy_n(problem.bias_of_all ? of_all : of_heads, 4, tensors.bias_strides);
  tensors.scale = float(problem.scale);
  tensors.output = output.data();
  tensors.normalizers = static_cast<float*>(normalizers.data());
  tensors.input_format = format;
  const Workspace workspace(ddu::cuda::attention_workspace_bytes(h, problem.types(), tensors));
  tensors.workspace = workspace.data();
  ddu::cuda::attention(h, problem.types(), tensors, nullptr);
  EXPECT_TRUE(workspace.kept_within());
  EXPECT_LE(error(formatted(output.template on_host<T>(), g.positions(), true), expected.output), 1);

  const Memory grad_query(problem.values.size() * sizeof(T)), grad_key(problem.image.size() * sizeof(T)),
      grad_value(problem.image.size() * sizeof(T)), grad_map(problem.map.size() * sizeof(M)),
      grad_scores(expected.scores.size() * sizeof(float));
  ddu::AttentionBackward backward{};
  backward.forward = tensors;
  backward.grad_output = grad.data();
  if (wanted & 1) backward.grad_query = grad_query.data();
  if (wanted & 2) backward.grad_key = grad_key.data();
  if (wanted & 4) backward.grad_value = grad_value.data();
  if (wanted & 8) backward.grad_map = grad_map.data();
  if (wanted & 16) backward.grad_scores = static_cast<float*>(grad_scores.data());
  const Workspace scratch(ddu::cuda::attention_backward_workspace_bytes(h, problem.types(), backward));
  backward.workspace = scratch.data();
  ddu::cuda::attention_backward(h, problem.types(), backward, nullptr);
  EXPECT_TRUE(scratch.kept_within());
  // The output that the backward reads is rounded, and what is subtracted with it may cancel, most of all for the map where a
  // window barely meets the image.
  if (wanted & 1) {
    EXPECT_LE(error(formatted(grad_query.template on_host<T>(), g.positions(), true), expected.query), 2);
  }
  if (wanted & 2) {
    EXPECT_LE(error(formatted(grad_key.template on_host<T>(), g.pixels(), true), expected.key), 2);
  }
  if (wanted & 4) {
    EXPECT_LE(error(formatted(grad_value.template on_host<T>(), g.pixels(), true), expected.value), 2);
  }
  if (wanted & 8) {
    EXPECT_LE(error(grad_map.template on_host<M>(), expected.map), sizeof(T) == 4 ? 2 : sizeof(M) == 2 ? 8 : 2000);
  }
  if (wanted & 16) {
    EXPECT_LE(error(grad_scores.template on_host<float>(), expected.scores), sizeof(T) == 4 ? 2 : 4000);
  }
}

template <class Given>
class CudaAttention : public testing::Test {
 protected:
  using P = Problem<typename Given::T, typename Given::M>;
  void SetUp() override {
    if (!has_device()) GTEST_SKIP() << "no CUDA device";
  }
};
TYPED_TEST_SUITE(CudaAttention, cuda_call::EveryButDouble);

TYPED_TEST(CudaAttention, AgainstTheDefinition) {
  for (const auto rates : {near_rates, any_rates}) {
    for (const HeadCase& c : kCases) {
      SCOPED_TRACE(testing::Message() << "case " << &c - kCases << (rates == near_rates ? ", near rates" : ", any rates"));
      const typename TestFixture::P problem(c, rates, (&c - kCases) % 2 != 0);
      const Results expected = expected_of(problem);
      const std::size_t vector = 16 / sizeof(typename TypeParam::T);
      for (const bool channels_last : {false, true}) {
        if (!channels_last || std::size_t(problem.h.head_channels()) % vector == 0) expect(problem, expected, channels_last);
      }
    }
  }
}

TYPED_TEST(CudaAttention, OnlyWhatIsWanted) {
  const typename TestFixture::P problem(kCases[0], near_rates);
  const Results expected = expected_of(problem);
  for (const bool channels_last : {false, true})
    for (const unsigned wanted : {0u, 1u, 2u, 4u, 8u, 16u}) expect(problem, expected, channels_last, wanted);
}

TEST(CudaAttentionSizes, OthersAreNotSupported) {
  const auto supported = [](HeadCase c, ddu::DType type, ddu::MemoryFormat format) {
    return ddu::cuda::attention_supported({c.sizes.geometry(), c.heads, c.sizes.batch}, {type, type}, format);
  };
  const auto planes = ddu::MemoryFormat::contiguous, last = ddu::MemoryFormat::channels_last;
  HeadCase c = kCases[0];
  EXPECT_TRUE(supported(c, ddu::DType::float32, planes));
  EXPECT_FALSE(supported(c, ddu::DType::float64, planes));
  c.sizes.channels = 4 * 6;
  EXPECT_TRUE(supported(c, ddu::DType::float32, planes));
  EXPECT_FALSE(supported(c, ddu::DType::float32, last));
  c.sizes.channels = 4 * 80;
  EXPECT_FALSE(supported(c, ddu::DType::float32, planes));
  c.sizes.channels = 0;
  EXPECT_FALSE(supported(c, ddu::DType::float32, planes));
}

}  // namespace
