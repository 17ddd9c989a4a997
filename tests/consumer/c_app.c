/* The C API: a map of ones gives im2col to the bit, gradients agree with differences, and every failure has its code. */

#include <ddu/ddu_c.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

#define EXPECT(condition)                                                  \
  do {                                                                     \
    if (!(condition)) {                                                    \
      printf("line %d: %s; %s\n", __LINE__, #condition, ddu_last_error()); \
      ++failures;                                                          \
    }                                                                      \
  } while (0)

enum { B = 2, C = 3, H = 6, W = 7, K = 3, P = H * W, COLUMNS = C * K * K };
static const ddu_types kDouble = {DDU_FLOAT64, DDU_FLOAT64};
static double image[B * C * H * W], map[B * P], output[B * COLUMNS * P], moved[B * COLUMNS * P], grad[B * COLUMNS * P];
static double grad_image[B * C * H * W], grad_map[B * P];

static ddu_status geometry_of(int64_t groups, int64_t map_width, ddu_geometry* geometry) {
  const int64_t input_sizes[4] = {B, C, H, W};
  const int64_t map_sizes[4] = {B, 1, H, map_width};
  ddu_options options = DDU_OPTIONS_INIT;
  options.kernel_size[0] = options.kernel_size[1] = K;
  options.padding[0] = options.padding[1] = 1;
  options.groups = groups;
  return ddu_make_geometry(input_sizes, 4, map_sizes, 4, &options, geometry);
}

static double pixel(int b, int c, int y, int x) {
  return y < 0 || y >= H || x < 0 || x >= W ? 0.0 : image[((b * C + c) * H + y) * W + x];
}

/* Calls ddu_cpu_unfold with scratch memory. */
static ddu_status unfold(const ddu_geometry* geometry, double* result) {
  ddu_unfold tensors = {image, map, result, NULL, DDU_CONTIGUOUS};
  size_t bytes = 0;
  ddu_status status = DDU_OK;
  char* memory = NULL;
  EXPECT(ddu_cpu_unfold_workspace_bytes(geometry, kDouble, &tensors, 2, &bytes) == DDU_OK);
  memory = malloc(bytes + 64);
  tensors.workspace = memory + (64 - (size_t)memory % 64);
  status = ddu_cpu_unfold(geometry, kDouble, &tensors, 2);
  free(memory);
  return status;
}

/* The sum of the columns times grad: the scalar whose derivatives backward gives. */
static double objective(const ddu_geometry* geometry) {
  double sum = 0;
  EXPECT(unfold(geometry, moved) == DDU_OK);
  for (int i = 0; i < B * COLUMNS * P; ++i) sum += moved[i] * grad[i];
  return sum;
}

static double slope(const ddu_geometry* geometry, double* value) {
  const double step = 1e-6, middle = *value;
  double above = 0;
  *value = middle + step;
  above = objective(geometry);
  *value = middle - step;
  above -= objective(geometry);
  *value = middle;
  return above / (2 * step);
}

static void test_values(const ddu_geometry* geometry) {
  int different = 0;
  for (int i = 0; i < B * P; ++i) map[i] = 1.0;
  EXPECT(unfold(geometry, output) == DDU_OK);
  for (int i = 0; i < B * COLUMNS * P; ++i) {
    const int position = i % P, column = i / P % COLUMNS, b = i / P / COLUMNS;
    const int ky = column / K % K, kx = column % K;
    different += output[i] != pixel(b, column / K / K, position / W + ky - 1, position % W + kx - 1);
  }
  EXPECT(different == 0);
}

static void test_gradients(const ddu_geometry* geometry) {
  ddu_unfold_backward tensors = {grad, image, map, grad_image, grad_map, NULL, DDU_CONTIGUOUS};
  size_t bytes = 0;
  char* memory = NULL;
  for (int i = 0; i < B * P; ++i) map[i] = 0.37 + 0.83 * rand() / RAND_MAX; /* taps off whole pixels, almost surely */
  EXPECT(ddu_cpu_unfold_backward_workspace_bytes(geometry, kDouble, &tensors, 2, &bytes) == DDU_OK);
  EXPECT(bytes > 0);
  memory = malloc(bytes + 64);
  EXPECT(ddu_cpu_unfold_backward(geometry, kDouble, &tensors, 2) == DDU_INVALID_ARGUMENT);
  EXPECT(strcmp(ddu_last_error(), "workspace must not be null") == 0);
  tensors.workspace = memory + (64 - (size_t)memory % 64);
  EXPECT(ddu_cpu_unfold_backward(geometry, kDouble, &tensors, 2) == DDU_OK);
  for (int i = 0; i < B * C * H * W; i += 11) EXPECT(fabs(slope(geometry, &image[i]) - grad_image[i]) < 1e-6);
  for (int i = 0; i < B * P; i += 5) EXPECT(fabs(slope(geometry, &map[i]) - grad_map[i]) < 1e-6);

  memset(grad_image, 0, sizeof grad_image);
  tensors.grad_map = NULL;
  EXPECT(ddu_cpu_unfold_backward(geometry, kDouble, &tensors, 2) == DDU_OK);
  EXPECT(fabs(slope(geometry, &image[0]) - grad_image[0]) < 1e-6);
  free(memory);
}

/* Scratch memory aligned to 64; its base in *base is to be freed. */
static void* scratch(size_t bytes, void** base) {
  *base = malloc(bytes + 64);
  return (char*)*base + (64 - (size_t)*base % 64);
}

static double dot(const double* a, const double* b, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

enum { T = K * K };
static double weights[B * C * T * P], summed[B * C * P], scores[B * C * T * P], values[B * C * P];
static double grad_weights[B * C * T * P], grad_values[B * C * P];

static ddu_status head_geometry_of(int64_t taps, ddu_head_geometry* geometry) {
  const int64_t input_sizes[4] = {B, C, H, W}, map_sizes[4] = {B, 1, H, W}, weights_sizes[5] = {B, C, taps, H, W};
  ddu_options options = DDU_OPTIONS_INIT;
  options.kernel_size[0] = options.kernel_size[1] = K;
  options.padding[0] = options.padding[1] = 1;
  return ddu_make_aggregate_geometry(input_sizes, 4, weights_sizes, 5, map_sizes, 4, &options, geometry);
}

/* Aggregate and correlate, a head for each channel, are sums of the columns; both are linear in each of their tensors, which
 * says what their gradients are. */
static void test_heads(const ddu_geometry* geometry) {
  const int64_t query_sizes[4] = {B, C, H, W}, map_sizes[4] = {B, 1, H, W};
  ddu_options options = DDU_OPTIONS_INIT;
  ddu_head_geometry heads, same;
  ddu_aggregate aggregate = {image, weights, map, summed, NULL, DDU_CONTIGUOUS};
  ddu_correlate correlate = {values, image, map, scores, NULL, DDU_CONTIGUOUS};
  ddu_aggregate_backward backward = {values, image, weights, map, grad_image, grad_weights, NULL, NULL, DDU_CONTIGUOUS};
  ddu_correlate_backward of_scores = {weights, values, image, map, grad_values, NULL, grad_map, NULL, DDU_CONTIGUOUS};
  size_t bytes = 0;
  void* base = NULL;
  double worst = 0, total = 0;

  EXPECT(head_geometry_of(T - 1, &heads) == DDU_INVALID_ARGUMENT);
  EXPECT(strstr(ddu_last_error(), "weights must have shape [2, heads, 9, 6, 7] (or batch 1)") != NULL);
  EXPECT(head_geometry_of(T, &heads) == DDU_OK);
  EXPECT(heads.heads == C && heads.factors_batch == B);
  options.kernel_size[0] = options.kernel_size[1] = K;
  options.padding[0] = options.padding[1] = 1;
  EXPECT(ddu_make_correlate_geometry(query_sizes, 4, query_sizes, 4, map_sizes, 4, &options, C, &same) == DDU_OK);
  EXPECT(same.heads == C && same.factors_batch == B && same.geometry.h.out_size == H && same.geometry.groups == 1);

  for (int i = 0; i < B * C * T * P; ++i) weights[i] = (double)rand() / RAND_MAX - 0.5;
  for (int i = 0; i < B * C * P; ++i) values[i] = (double)rand() / RAND_MAX - 0.5;
  EXPECT(unfold(geometry, output) == DDU_OK);
  EXPECT(ddu_cpu_aggregate_workspace_bytes(&heads, kDouble, &aggregate, 2, &bytes) == DDU_OK);
  EXPECT(ddu_cpu_aggregate(&heads, kDouble, &aggregate, 2) == DDU_INVALID_ARGUMENT);
  EXPECT(strcmp(ddu_last_error(), "workspace must not be null") == 0);
  aggregate.workspace = scratch(bytes, &base);
  EXPECT(ddu_cpu_aggregate(&heads, kDouble, &aggregate, 2) == DDU_OK);
  free(base);
  EXPECT(ddu_cpu_correlate_workspace_bytes(&heads, kDouble, &correlate, 2, &bytes) == DDU_OK);
  correlate.workspace = scratch(bytes, &base);
  EXPECT(ddu_cpu_correlate(&heads, kDouble, &correlate, 2) == DDU_OK);
  free(base);
  for (int i = 0; i < B * C * P; ++i) {
    double sum = 0;
    for (int t = 0; t < T; ++t) {
      const int at = (i / P * T + t) * P + i % P;
      sum += weights[at] * output[at];
      worst = fmax(worst, fabs(scores[at] - values[i] * output[at]));
    }
    worst = fmax(worst, fabs(summed[i] - sum));
  }
  EXPECT(worst < 1e-13);

  EXPECT(ddu_cpu_aggregate_backward_workspace_bytes(&heads, kDouble, &backward, 2, &bytes) == DDU_OK);
  backward.workspace = scratch(bytes, &base);
  EXPECT(ddu_cpu_aggregate_backward(&heads, kDouble, &backward, 2) == DDU_OK);
  free(base);
  EXPECT(ddu_cpu_correlate_backward_workspace_bytes(&heads, kDouble, &of_scores, 2, &bytes) == DDU_OK);
  of_scores.workspace = scratch(bytes, &base);
  EXPECT(ddu_cpu_correlate_backward(&heads, kDouble, &of_scores, 2) == DDU_OK);
  free(base);
  total = dot(values, summed, B * C * P);
  EXPECT(fabs(dot(grad_image, image, B * C * H * W) - total) < 1e-11);
  EXPECT(fabs(dot(grad_weights, weights, B * C * T * P) - total) < 1e-11);
  EXPECT(fabs(dot(grad_values, values, B * C * P) - dot(weights, scores, B * C * T * P)) < 1e-11);
  if (ddu_cuda_toolkit_version() == 0) EXPECT(ddu_cuda_correlate(&heads, kDouble, &correlate, NULL) == DDU_CUDA_ERROR);
}

static void test_errors(ddu_geometry* geometry) {
  const ddu_types mixed = {DDU_FLOAT32, DDU_FLOAT64}, unknown = {7, 7};
  ddu_unfold tensors = {image, map, NULL, NULL, DDU_CONTIGUOUS};
  size_t bytes = 0;
  ddu_unfold_backward backward = {grad, image, map, grad_image, grad_map, NULL, DDU_CONTIGUOUS};
  EXPECT(geometry_of(2, W, geometry) == DDU_INVALID_ARGUMENT);
  EXPECT(strcmp(ddu_last_error(), "groups must be positive and divide the input's 3 channels, got 2") == 0);
  EXPECT(geometry_of(1, W - 1, geometry) == DDU_INVALID_ARGUMENT);
  EXPECT(strstr(ddu_last_error(), "dilation_map must have shape [2, 1, 6, 7] (or batch 1)") != NULL);
  EXPECT(geometry_of(1, W, NULL) == DDU_INVALID_ARGUMENT);
  EXPECT(ddu_make_geometry(NULL, 4, NULL, 4, NULL, geometry) == DDU_INVALID_ARGUMENT);
  EXPECT(geometry_of(1, W, geometry) == DDU_OK);

  EXPECT(ddu_cpu_unfold(geometry, kDouble, &tensors, 1) == DDU_INVALID_ARGUMENT);
  EXPECT(ddu_cpu_unfold(geometry, kDouble, NULL, 1) == DDU_INVALID_ARGUMENT);
  EXPECT(ddu_cpu_unfold(NULL, kDouble, &tensors, 1) == DDU_INVALID_ARGUMENT);
  tensors.output = output;
  EXPECT(ddu_cpu_unfold(geometry, kDouble, &tensors, 1) == DDU_INVALID_ARGUMENT);
  EXPECT(strcmp(ddu_last_error(), "workspace must not be null") == 0);
  tensors.input_format = 2;
  EXPECT(ddu_cpu_unfold(geometry, kDouble, &tensors, 1) == DDU_INVALID_ARGUMENT);
  EXPECT(strcmp(ddu_last_error(), "input_format must be DDU_CONTIGUOUS or DDU_CHANNELS_LAST") == 0);
  EXPECT(ddu_cpu_unfold(geometry, mixed, &tensors, 1) == DDU_TYPE_ERROR);
  EXPECT(strcmp(ddu_last_error(), "dilation_map must have the input's dtype float32, got float64") == 0);
  EXPECT(ddu_cpu_unfold(geometry, unknown, &tensors, 1) == DDU_TYPE_ERROR);
  EXPECT(ddu_cpu_unfold_backward_workspace_bytes(geometry, kDouble, &backward, 1, NULL) == DDU_INVALID_ARGUMENT);
  if (ddu_cuda_toolkit_version() == 0) {
    const char* none = "this build of dynamic_dilation_unfold has no CUDA kernels";
    EXPECT(ddu_cuda_unfold(geometry, kDouble, &tensors, NULL) == DDU_CUDA_ERROR);
    EXPECT(strcmp(ddu_last_error(), none) == 0);
    EXPECT(ddu_cuda_unfold_backward_workspace_bytes(geometry, kDouble, &backward, 0, &bytes) == DDU_CUDA_ERROR);
    EXPECT(ddu_cuda_unfold_backward(geometry, kDouble, &backward, 0, NULL) == DDU_CUDA_ERROR);
    EXPECT(strcmp(ddu_cuda_architectures(), "") == 0);
  }
}

int main(void) {
  ddu_geometry geometry;
  EXPECT(strcmp(ddu_last_error(), "") == 0);
  EXPECT(strcmp(ddu_version(), DDU_VERSION) == 0);
  for (int i = 0; i < B * C * H * W; ++i) image[i] = (double)rand() / RAND_MAX;
  for (int i = 0; i < B * COLUMNS * P; ++i) grad[i] = (double)rand() / RAND_MAX - 0.5;
  EXPECT(geometry_of(1, W, &geometry) == DDU_OK);
  EXPECT(geometry.h.out_size == H && geometry.w.out_size == W && geometry.map_batch == B);
  test_values(&geometry);
  test_gradients(&geometry);
  test_heads(&geometry);
  test_errors(&geometry);
  printf("libddu %s (%s, CUDA %d): %d failures\n", ddu_version(), ddu_cpu_capability(), ddu_cuda_toolkit_version(), failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
