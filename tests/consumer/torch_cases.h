#pragma once

// What the programs for LibTorch share: counted checks, and the calls that Python wrote (cases.py).

#include <ddu/torch.h>
#include <torch/version.h>

#include <string>
#include <vector>

#define WITH_PACKAGES (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 6)  // AOTInductor's

void expect(bool fine, const std::string& what);

class Case {
 public:
  explicit Case(const c10::IValue& value) : fields_(value.toGenericDict()) {}
  c10::IValue operator[](const char* name) const { return fields_.at(std::string(name)); }
  at::Tensor tensor(const char* name) const { return (*this)[name].toTensor(); }
  std::string text(const char* name) const { return (*this)[name].toStringRef(); }
  bool has(const char* name) const { return fields_.contains(std::string(name)); }
  ddu::Pair pair(const char* name) const {
    const c10::List<c10::IValue> values = (*this)[name].toList();
    return {values.get(0).toInt(), values.get(1).toInt()};
  }
  std::vector<Case> list(const char* name) const {
    std::vector<Case> cases;
    for (const c10::IValue& value : (*this)[name].toListRef()) cases.emplace_back(value);
    return cases;
  }
  ddu::TorchOptions options() const {
    const bool border = has("padding_mode") && text("padding_mode") == "border";
    return {pair("stride"), pair("padding"), pair("dilation"), (*this)["groups"].toInt(),
            border ? ddu::PaddingMode::border : ddu::PaddingMode::zeros};
  }

 private:
  c10::Dict<c10::IValue, c10::IValue> fields_;
};

/// Calls of aggregate, correlate, coverage and attention.
void test_heads(const Case& cases);
/// Convolutions.
void test_conv2d(const Case& cases);
/// On the CUDA device: calls, streams, graphs, autocast and an exported program.
void test_cuda(const Case& cases, const std::string& directory);
/// Runs the package and compares with what Python had of it, and of the model that it was made from.
void test_program(const std::vector<Case>& runs, const std::string& package);
