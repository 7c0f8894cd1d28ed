// A device "cuda" whose memory is the host's, for builds of torch that have no CUDA: see fake_cuda.py, which loads it.
// Kernels run on the CPU. Tensors of two devices in one operator are refused. What makes the host wait is counted.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/unfold_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>
#include <set>
#include <mutex>
#include <map>
#include <string>

namespace {
using c10::Device; using c10::DeviceIndex; using c10::DeviceType; using c10::Stream;

thread_local DeviceIndex current = 0;
thread_local bool within = false;  // a kernel: what it copies is its own business
std::mutex lock;
std::map<std::string, long> waited;   // by operator

void note(const std::string& name) {
  if (within) return;
  std::lock_guard<std::mutex> guard(lock);
  waited[name]++;
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* p = c10::alloc_cpu(n);
    if (n) memset(p, 0x7f, n);  // new memory holds anything
    return {p, p, &c10::free_cpu, Device(DeviceType::CUDA, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
};
DeviceAllocator device_allocator;

std::mutex pins_lock;
std::set<const void*> pins;
void unpin(void* p) {
  { std::lock_guard<std::mutex> guard(pins_lock); pins.erase(p); }
  c10::free_cpu(p);
}
struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* p = c10::alloc_cpu(n);
    if (p) { std::lock_guard<std::mutex> guard(pins_lock); pins.insert(p); }
    return {p, p, &unpin, Device(DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
};
PinnedAllocator pinned_allocator;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device d) const override { Device old(DeviceType::CUDA, current); current = d.index() < 0 ? current : d.index(); return old; }
  Device getDevice() const override { return {DeviceType::CUDA, current}; }
  void setDevice(Device d) const override { if (d.index() >= 0) current = d.index(); }
  void uncheckedSetDevice(Device d) const noexcept override { if (d.index() >= 0) current = d.index(); }
  Stream getStream(Device d) const override { return Stream(Stream::DEFAULT, d); }
  Stream getDefaultStream(Device d) const override { return Stream(Stream::DEFAULT, d); }
  Stream getStreamFromGlobalPool(Device d, bool) const override { return Stream(Stream::DEFAULT, d); }
  Stream getNewStream(Device d, int) const override { return Stream(Stream::DEFAULT, d); }
  Stream exchangeStream(Stream s) const override { return Stream(Stream::DEFAULT, s.device()); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  void record(void** event, const Stream&, const DeviceIndex, const c10::EventFlag) const override { *event = (void*)1; }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};

bool pinned(const void* p) {
  std::lock_guard<std::mutex> guard(pins_lock);
  auto next = pins.upper_bound(p);
  return next != pins.begin() && *std::prev(next) == p;
}

struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(DeviceIndex d) const override { current = d; }
  DeviceIndex exchangeDevice(DeviceIndex d) const override { auto old = current; if (d >= 0) current = d; return old; }
  DeviceIndex maybeExchangeDevice(DeviceIndex d) const override { return exchangeDevice(d); }
  int getNumGPUs() const override { return 1; }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  at::Allocator* getCUDADeviceAllocator() const override { return &device_allocator; }
  bool isPinnedPtr(const void* p) const override { return pinned(p); }
  Device getDeviceFromPtr(void*) const override { return {DeviceType::CUDA, current}; }
  void deviceSynchronize(DeviceIndex) const override {}
  const at::Generator& getDefaultGenerator(DeviceIndex = -1) const override { return at::detail::getDefaultCPUGenerator(); }
  at::Generator getNewGenerator(DeviceIndex = -1) const override { return at::detail::createCPUGenerator(); }
};

// ---- memory, and the views of it ------------------------------------------------------------------------------------

at::Tensor empty_memory_format(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &device_allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
}
at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &device_allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype));
}

at::Tensor host(const at::Tensor& t) {  // the same memory as a tensor on the CPU
  if (!t.defined() || !t.is_cuda()) return t;
  at::Storage storage(at::Storage::use_byte_size_t(), t.storage().nbytes(),
      c10::DataPtr(t.storage().mutable_data(), Device(DeviceType::CPU)), c10::GetCPUAllocator(), false);
  auto out = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  if (t.is_conj()) out._set_conj(true);
  if (t.is_neg()) out._set_neg(true);
  return out;
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& src, bool non_blocking) {
  if (self.is_cpu() && src.is_cuda() && src.numel() && !non_blocking) note("copy to the host");
  if (self.is_cuda() && src.is_cpu() && src.numel() && src.dim() && !(non_blocking && src.is_pinned())) note("copy of pageable memory to the device");
  at::AutoDispatchBelowADInplaceOrView below;
  auto to = host(self), from = host(src);
  if (src.is_sparse() || self.is_sparse()) TORCH_CHECK(false, "sparse copy");
  to.copy_(from);
  return self;
}
at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& dst) {
  if (dst.sizes() != self.sizes()) const_cast<at::Tensor&>(dst).resize_(self.sizes());
  auto to = host(dst);
  to.copy_(host(self));
  return dst;
}
const at::Tensor& resize_(const at::Tensor& self, c10::SymIntArrayRef sizes, std::optional<at::MemoryFormat> format) {
  auto size = C10_AS_INTARRAYREF_SLOW(sizes);
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  auto need = at::detail::computeStorageNbytesContiguous(size, self.dtype().itemsize(), self.storage_offset());
  if (need > self.storage().nbytes()) {
    auto fresh = device_allocator.allocate(need);
    if (self.storage().nbytes()) memcpy(fresh.get(), self.storage().data(), self.storage().nbytes());
    self.storage().set_data_ptr_noswap(std::move(fresh));
    self.storage().set_nbytes(need);
  }
  return self;
}
at::Scalar local_scalar_dense(const at::Tensor& self) { note("item"); return at::_local_scalar_dense(host(self)); }

at::Tensor& set_storage(at::Tensor& self, at::Storage storage, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset.expect_int());
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  auto strides = C10_AS_INTARRAYREF_SLOW(stride);
  if (strides.size() == sizes.size()) impl->set_sizes_and_strides(sizes, strides); else impl->set_sizes_contiguous(sizes);
  return self;
}
at::Tensor& set_source(at::Tensor& self, at::Storage storage) {
  int64_t n = storage.nbytes() / self.dtype().itemsize();
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_storage_offset(0);
  self.unsafeGetTensorImpl()->set_sizes_contiguous({n});
  return self;
}
at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(source.storage());
  impl->set_storage_offset(source.storage_offset());
  impl->set_sizes_and_strides(source.sizes(), source.strides());
  return self;
}

// ---- everything else -------------------------------------------------------------------------------------------------

// Inputs are the same memory, seen as the CPU's; what is written to is a copy, since it may be given another size.
void on_the_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& arguments = schema.arguments();
  const size_t n = arguments.size(), begin = stack->size() - n;
  std::vector<std::pair<at::Tensor, at::Tensor>> written;  // on the device, on the host
  bool any = false;
  auto to_host = [&](const at::Tensor& t, const bool write) -> at::Tensor {
    if (!t.defined() || !t.is_cuda()) return t;
    any = true;
    if (!write) return host(t);
    at::Tensor h = host(t).clone();
    written.emplace_back(t, h);
    return h;
  };
  for (size_t i = 0; i < n; i++) {
    auto& v = (*stack)[begin + i];
    const auto* alias = arguments[i].alias_info();
    const bool write = alias && alias->isWrite();
    if (v.isTensor()) { if (v.toTensor().defined()) v = to_host(v.toTensor(), write); }
    else if (v.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const auto& t : v.toTensorVector()) list.push_back(to_host(t, write));
      v = list;
    } else if (v.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const auto& t : v.toOptionalTensorVector()) list.push_back(t ? std::optional<at::Tensor>(to_host(*t, write)) : t);
      v = list;
    } else if (v.isDevice() && v.toDevice().is_cuda()) { v = c10::Device(c10::DeviceType::CPU); any = true; }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (auto& [d, h] : written) {
    if (d.sizes() != h.sizes()) d.resize_(h.sizes());
    auto target = host(d);
    target.copy_(h);
  }
  auto to_device = [&](const at::Tensor& t) -> at::Tensor {
    if (!t.defined() || !t.is_cpu() || !any) return t;
    for (auto& [d, h] : written) if (h.unsafeGetTensorImpl() == t.unsafeGetTensorImpl()) return d;
    at::Tensor made = at::detail::empty_strided_generic(t.sizes(), t.strides(), &device_allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA), t.scalar_type());
    auto target = host(made);
    target.copy_(t);
    return made;
  };
  const size_t results = schema.returns().size();
  for (size_t i = stack->size() - results; i < stack->size(); i++) {
    auto& v = (*stack)[i];
    if (v.isTensor()) v = to_device(v.toTensor());
    else if (v.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor t : v.toTensorVector()) list.push_back(to_device(t));
      v = list;
    }
  }
}

// A GPU's kernels take these arguments from main memory, too: indices, lengths.
const std::set<std::string> mixed_allowed = {"aten::index.Tensor", "aten::index_put", "aten::_index_put_impl_",
    "aten::index_put_", "aten::_unsafe_index.Tensor", "aten::_pack_padded_sequence",
    "aten::_pack_padded_sequence_backward", "aten::_foreach_copy_", "aten::_ctc_loss"};
const std::set<std::string> waiting = {"aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::unique_consecutive",
  "aten::unique_dim", "aten::repeat_interleave", "aten::bincount", "aten::is_nonzero", "aten::_local_scalar_dense"};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto name = schema.name();
  bool device = false, main_memory = false;
  auto look = [&](const at::Tensor& t) {
    if (!t.defined()) return;
    if (t.is_cuda()) device = true;
    else if (t.is_cpu() && t.dim()) main_memory = true;
  };
  const auto n = schema.arguments().size();
  for (size_t i = stack->size() - n; i < stack->size(); i++) {
    const auto& v = (*stack)[i];
    if (v.isTensor()) look(v.toTensor());
    else if (v.isTensorList()) for (const auto& t : v.toTensorVector()) look(t);
    else if (v.isOptionalTensorList()) for (const auto& t : v.toOptionalTensorVector()) if (t) look(*t);
  }
  TORCH_CHECK(!(device && main_memory) || mixed_allowed.count(name) || mixed_allowed.count(name + "." + schema.overload_name()),
      "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (", name, ")");
  if (waiting.count(name)) note(name);
  const bool before = within;
  within = true;
  try { on_the_host(op, stack); } catch (...) { within = before; throw; }
  within = before;
}
}  // namespace

namespace at { using ::CUDAHooks; REGISTER_CUDA_HOOKS(CUDAHooks) }

C10_REGISTER_GUARD_IMPL(CUDA, Guard);

static struct Early { Early() { c10::SetAllocator(DeviceType::CUDA, &device_allocator, 1); } } early;

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty_memory_format);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("resize_", &resize_);
  m.impl("_local_scalar_dense", &local_scalar_dense);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_source);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
}
TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

extern "C" {
void fake_cuda_reset() { std::lock_guard<std::mutex> guard(lock); waited.clear(); }
const char* fake_cuda_report() {
  static std::string text; text.clear();
  std::lock_guard<std::mutex> guard(lock);
  for (auto& [name, count] : waited) text += name + "=" + std::to_string(count) + ";";
  return text.c_str();
}
}
