// A device that is not the CPU and has no speed: its memory is the host's, and its kernels are the CPU's.
//
// What it is for: an operation that mixes its tensors with the CPU's, or with those of another such device, fails here,
// as it does on a GPU. It also tells whom it is asked to (``flux2_tell_waits``) where the processor would wait for a GPU.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <set>

namespace {

constexpr auto OTHER = c10::DeviceType::PrivateUse1;
constexpr auto OTHER_KEY = c10::DispatchKey::PrivateUse1;
thread_local c10::DeviceIndex current = 0;

c10::Device device_now() { return c10::Device(OTHER, current); }

// One, or as many as FLUX2_CARDS says; the tensors of two do not mix either.
c10::DeviceIndex device_count() {
  const char* count = std::getenv("FLUX2_CARDS");
  return count ? std::atoi(count) : 1;
}

// ---- memory -------------------------------------------------------------------------------------------------------

void free_host(void* context) { delete static_cast<c10::DataPtr*>(context); }

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    auto* host = new c10::DataPtr(c10::GetCPUAllocator()->allocate(size));
    return {host->get(), host, &free_host, device_now()};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
};

Allocator allocator;
REGISTER_ALLOCATOR(OTHER, &allocator);

// ---- what torch asks of every device -------------------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return OTHER; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = device_now();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return device_now(); }
  void setDevice(c10::Device device) const override { uncheckedSetDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) current = device.index();
  }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    return c10::Stream(c10::Stream::DEFAULT, exchangeDevice(stream.device()));
  }
  c10::DeviceIndex deviceCount() const noexcept override { return device_count(); }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// Random numbers are the CPU's.
struct Generator final : c10::GeneratorImpl {
  explicit Generator(at::Generator host) : GeneratorImpl(c10::Device(OTHER, 0), c10::DispatchKeySet(OTHER_KEY)), host(std::move(host)) {}
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { host.set_offset(offset); }
  uint64_t get_offset() const override { return host.get_offset(); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
  GeneratorImpl* clone_impl() const override { return new Generator(host.clone()); }

  mutable at::Generator host;
};

struct Hooks final : at::PrivateUse1HooksInterface {
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<Generator>(at::detail::createCPUGenerator());
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
};

// ---- the same memory seen from either side -------------------------------------------------------------------------

void free_storage(void* context) { delete static_cast<c10::Storage*>(context); }

template <typename... Arguments>
at::Tensor seen_as(const at::Tensor& tensor, Arguments&&... arguments) {
  auto seen = at::detail::make_tensor<c10::TensorImpl>(std::forward<Arguments>(arguments)..., tensor.dtype());
  seen.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return seen;
}

c10::Storage storage_on(const c10::Storage& storage, c10::Device device) {
  c10::DataPtr data(storage.mutable_data(), new c10::Storage(storage), &free_storage, device);
  auto* allocator = device.is_cpu() ? c10::GetCPUAllocator() : &::allocator;
  return c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), allocator, true);
}

bool is_other(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == OTHER; }

at::Tensor on_host(const at::Tensor& tensor) {
  if (!is_other(tensor)) return tensor;
  return seen_as(tensor, storage_on(tensor.storage(), c10::kCPU), c10::DispatchKeySet(c10::DispatchKey::CPU));
}

at::Tensor on_device(const at::Tensor& tensor, c10::Device device) {
  return seen_as(tensor, storage_on(tensor.storage(), device), c10::DispatchKeySet(OTHER_KEY));
}

// ---- what the processor would wait for -----------------------------------------------------------------------------

using Listener = void (*)(const char* what, int64_t bytes);
Listener listener = nullptr;

void tell(const std::string& what, const at::Tensor& tensor) {
  if (listener) listener(what.c_str(), static_cast<int64_t>(tensor.nbytes()));
}

// Operations whose result, or whose result's size, the processor has to know. Indexing by booleans calls nonzero.
void tell_of(const c10::FunctionSchema& schema, const std::vector<at::Tensor>& given) {
  static const std::set<std::string> waiting = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero",
                                                "aten::masked_select", "aten::_unique2", "aten::unique_dim"};
  if (listener && waiting.count(schema.name())) tell(schema.name(), given.front());
}

// ---- every operation -----------------------------------------------------------------------------------------------

// Where an operation runs: the device of its first tensor that is no mere number, else of its first, else ``otherwise``.
c10::Device computing(const std::vector<at::Tensor>& tensors, c10::Device otherwise) {
  const at::Tensor* number = nullptr;
  for (const auto& tensor : tensors) {
    if (!is_other(tensor)) continue;
    if (tensor.dim() > 0) return tensor.device();
    if (!number) number = &tensor;
  }
  return number ? number->device() : otherwise;
}

void require_one_device(const c10::FunctionSchema& schema, const std::vector<at::Tensor>& tensors) {
  static const std::set<std::string> indexed = {"aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_"};
  if (indexed.count(c10::toString(schema.operator_name()))) return;
  const std::string& name = schema.name();
  if (name.rfind("aten::_foreach_", 0) == 0 && name.back() == '_') return;  // in place, each tensor where it lies
  const auto device = computing(tensors, device_now());
  for (const auto& tensor : tensors)
    TORCH_CHECK(!tensor.defined() || tensor.device() == device || (tensor.dim() == 0 && !is_other(tensor)),
                "Expected all tensors to be on the same device, but found at least two devices, ", device, " and ",
                tensor.device(), "! (in ", schema.operator_name(), ")");
}

// One call of an operation: its arguments as they were given, and what has to be done with its results.
struct Call {
  const c10::FunctionSchema& schema;
  std::vector<at::Tensor> given;
  std::vector<std::pair<at::Tensor, at::Tensor>> written;  // as given, and as the host has it
  std::optional<c10::Device> wanted;

  at::Tensor take(const at::Tensor& tensor) {
    given.push_back(tensor);
    return on_host(tensor);
  }

  void take_written(const c10::Argument& argument, const at::Tensor& host) {
    const auto* alias = argument.alias_info();
    if (!alias || !alias->isWrite() || !given.back().defined()) return;
    TORCH_CHECK(is_other(given.back()), "the result of ", schema.operator_name(),
                " is on the CPU, but what it is computed from is not");
    written.emplace_back(given.back(), host);
  }

  c10::IValue argument(const c10::Argument& argument, const c10::IValue& value) {
    if (value.isTensor()) {
      const at::Tensor host = take(value.toTensor());
      take_written(argument, host);
      return host;
    }
    if (value.isTensorList()) {
      c10::List<at::Tensor> hosts;
      for (const at::Tensor& tensor : value.toTensorVector()) hosts.push_back(take(tensor));
      return hosts;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> hosts;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector())
        hosts.push_back(tensor ? std::make_optional(take(*tensor)) : std::nullopt);
      return hosts;
    }
    if (value.isGenerator()) {
      const auto* generator = dynamic_cast<Generator*>(value.toGenerator().unsafeGetGeneratorImpl());
      return generator ? c10::IValue(generator->host) : value;
    }
    if (value.isDevice()) {
      wanted = value.toDevice();
      return c10::Device(c10::kCPU);
    }
    return value;
  }

  // An ``out`` that was too small has other memory now.
  void give_back_written() const {
    for (const auto& [tensor, host] : written) {
      auto* impl = tensor.unsafeGetTensorImpl();
      if (host.storage().data() != tensor.storage().data())
        impl->set_storage_keep_dtype(storage_on(host.storage(), tensor.device()));
      impl->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    }
  }

  // Views lie in the memory that was given.
  at::Tensor result(const at::Tensor& tensor) const {
    if (!tensor.defined()) return tensor;
    for (const auto& source : given)
      if (is_other(source) && source.storage().data() == tensor.storage().data() && source.storage().nbytes())
        return seen_as(tensor, c10::TensorImpl::VIEW, c10::Storage(source.storage()), source.key_set());
    return on_device(tensor, computing(given, wanted && wanted->has_index() ? *wanted : device_now()));
  }

  // What was changed in place is returned as the tensor that was given.
  at::Tensor changed(const at::Tensor& host) const {
    for (const auto& [tensor, own] : written)
      if (own.is_same(host)) return tensor;
    return result(host);
  }

  c10::IValue result(const c10::IValue& value) const {
    if (value.isTensor()) return changed(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> results;
    for (const at::Tensor& tensor : value.toTensorVector()) results.push_back(result(tensor));
    return results;
  }
};

void run_on_host(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size(), begin = stack->size() - count;
  Call call{schema};
  for (size_t i = 0; i < count; ++i) (*stack)[begin + i] = call.argument(schema.arguments()[i], (*stack)[begin + i]);
  require_one_device(schema, call.given);
  tell_of(schema, call.given);
  op.callBoxed(stack);
  call.give_back_written();
  if (call.wanted && call.wanted->type() != OTHER) return;
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i) (*stack)[i] = call.result((*stack)[i]);
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (!non_blocking && is_other(from) != is_other(to)) tell(is_other(from) ? "to the host" : "to the device", from);
  on_host(to).copy_(on_host(from));
  return to;
}

int64_t plain_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                        double, bool, std::optional<double>, bool) {
  return 0;  // at::SDPBackend::math
}

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  const auto host_bias = bias && bias->defined() ? std::make_optional(on_host(*bias)) : std::nullopt;
  return on_device(at::convolution(on_host(x), on_host(weight), host_bias, stride, padding, dilation, transposed,
                                   output_padding, groups), x.device());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("_copy_from", copy_from);
  library.impl("convolution_overrideable", convolution);
  library.impl("_fused_sdp_choice", plain_attention);
}

const bool registered = (at::RegisterPrivateUse1HooksInterface(new Hooks), true);

}  // namespace

// Call ``told`` with a name and a number of bytes each time the processor would wait for a GPU; nobody if it is null.
extern "C" void flux2_tell_waits(Listener told) { listener = told; }
